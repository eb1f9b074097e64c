// The page of the search. What comes from the server is put into the page as text, never as markup.
"use strict";

const $ = (id) => document.getElementById(id);
const ROWS = ["copies", "instances", "kind"];
const KIND_WORDS = { equal: "Same byte for byte", copy: "Copies", similar: "Similar" };
const FIRST = 24, MOST = 500, COMPARED = 16, PAGE = 120, GROUPS = 20, SMALLEST_BOX = 0.03;

let status = null;
let answer = null;       // of the search that is shown
let shownClass = null;   // the chip that filters it
let request = 0;         // the newest thing that was asked for; answers to older ones are dropped
let view = "search";
let groups = [];         // of the page of duplicates that is shown
let current = 0;         // the group that keys act on
let deciding = Promise.resolve();  // until what was decided is noted

// small things

function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("aria-")) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

function tell(text) {
  $("message").textContent = text || "";
  $("message").hidden = !text;
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server can't be reached: is it still running?");
  }
  let body = null;
  try { body = await response.json(); } catch { /* told below */ }
  if (!response.ok) throw new Error((body && body.error) || `the server answered ${response.status}`);
  return body;
}

function guarded(work) {
  return async (...given) => {
    try { return await work(...given); } catch (error) { tell(error.message); }
    return undefined;
  };
}

const number = (value) => value.toLocaleString("en");
const percent = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;

function size(bytes) {
  if (bytes === null) return "";
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) { bytes /= 1000; unit += 1; }
  return `${bytes.toFixed(unit && bytes < 10 ? 1 : 0)} ${units[unit]}`;
}

// what is shown is in the address, so that Back goes back
function address(where, values = {}) {
  const query = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== null && value !== undefined && value !== ""));
  return `#${where}${query.size ? `&${query}` : ""}`;
}

function addressed() {
  const [where, ...rest] = location.hash.slice(1).split("&");
  return [["search", "album", "duplicates"].includes(where) ? where : "search", new URLSearchParams(rest.join("&"))];
}

function go(where, values) {
  const target = address(where, values);
  if (location.hash === target) show();
  else location.hash = target;
}

// drawn anew, it is what was asked for before, and nothing that was asked for since is dropped
const show = guarded(async (anew = false) => {
  const own = anew ? request : request += 1;
  if (!anew) document.body.classList.remove("busy");
  const [where, values] = addressed();
  view = where;
  for (const each of ["search", "album", "duplicates"]) {
    $(`view-${each}`).hidden = each !== where;
    if (each === where) $(`tab-${each}`).setAttribute("aria-current", "page");
    else $(`tab-${each}`).removeAttribute("aria-current");
  }
  tell("");
  if (where === "search") await showSearch(values);
  else if (where === "album") await showAlbum(values, own);
  else await showDuplicates(values, own);
});

// tiles

function tile(photo, score) {
  const open = make("button", { class: "open", title: photo.name });
  const picture = make("img", { src: photo.thumbnail, loading: "lazy", alt: photo.name, draggable: false });
  const made = make("div", { class: "tile" }, open);
  picture.addEventListener("error", async () => {
    made.classList.add("broken");
    let why = "";
    try { await ask(photo.thumbnail); } catch (error) { why = error.message; }
    open.append(make("span", { class: "why", textContent: why }));
  });
  const caption = make("span", { class: "caption" }, make("span", { class: "name", textContent: photo.name.split("/").pop() }));
  if (score !== undefined) caption.append(make("span", { class: "score", textContent: score }));
  open.append(picture, caption);
  open.addEventListener("click", () => go("search", { photo: photo.id }));
  const info = make("button", { class: "info", textContent: "i", tabIndex: -1, "aria-label": `Details of ${photo.name}` });
  info.addEventListener("click", () => details(photo));
  made.append(info);
  open.photo = photo;
  return made;
}

function details(photo) {
  const facts = [
    ["Size", photo.width ? `${number(photo.width)} x ${number(photo.height)} pixels` : ""],
    ["File", size(photo.bytes)],
    ["Time", photo.modified ? new Date(photo.modified).toLocaleString() : ""],
    ["Class", photo.class ? `${photo.class}${photo.probability === null ? "" : `, ${percent(photo.probability)}`}` : ""],
  ];
  $("details-picture").src = photo.picture;
  $("details-name").textContent = photo.name;
  $("details-facts").replaceChildren(...facts.filter(([, fact]) => fact).flatMap(([name, fact]) => [
    make("dt", { textContent: name }), make("dd", { textContent: fact })]));
  $("details-search").onclick = () => { $("details").close(); go("search", { photo: photo.id }); };
  $("details").showModal();
}

function chips(where, entries, chosen, choose) {
  where.replaceChildren(...entries.map(([name, text]) => {
    const chip = make("button", { textContent: text, title: text, "aria-pressed": String(name === chosen) });
    chip.addEventListener("click", () => choose(name === chosen ? null : name));
    return chip;
  }));
}

// search

async function showSearch(values) {
  const photo = values.get("photo"), upload = values.get("upload"), box = values.get("box");
  const k = Math.min(MOST, Number(values.get("k")) || FIRST);
  $("view-search").classList.toggle("empty", !photo && !upload);
  $("drop").hidden = Boolean(photo || upload);
  $("chosen").hidden = !(photo || upload);
  if (!photo && !upload) { answer = null; return; }
  const query = new URLSearchParams({ k });
  if (photo) query.set("photo", photo); else query.set("upload", upload);
  if (box) query.set("box", box);
  await searched(ask(`/api/search?${query}`));
}

// null where something else was asked for meanwhile
async function searched(pending) {
  const own = request += 1;
  document.body.classList.add("busy");
  let found = null;
  try {
    found = await pending;
  } catch (error) {
    if (own === request) throw error;
  } finally {
    if (own === request) document.body.classList.remove("busy");
  }
  if (own !== request) return null;
  answer = found;
  shownClass = null;
  showAnswer();
  return found;
}

function showAnswer() {
  const { query } = answer;
  $("view-search").classList.remove("empty");
  $("drop").hidden = true;
  $("chosen").hidden = false;
  if ($("picture").getAttribute("src") !== query.picture) $("picture").src = query.picture;
  $("query-name").textContent = query.photo ? query.photo.name : "The photo that you gave";
  drawBox(query.box);
  $("whole").hidden = !query.box;
  $("crop-hint").hidden = Boolean(query.box);
  $("query-classes").replaceChildren(...answer.classes.slice(0, 3).map(({ name, probability }) => make("li", {},
    make("span", { textContent: name }), make("span", { textContent: percent(probability) }),
    make("meter", { max: 1, value: probability, "aria-label": name }))));
  const hints = {
    copies: `Edited, cropped or compressed${answer.estimated ? "; by a rule of thumb" : ""}`,
    instances: "Less alike than copies are",
    kind: answer.classes.length ? `Other photos of ${answer.classes[0].name}` : "The most similar others",
  };
  const counts = new Map();
  for (const row of ROWS) {
    for (const { photo } of answer[row]) if (photo.class) counts.set(photo.class, (counts.get(photo.class) || 0) + 1);
  }
  const sorted = [...counts].sort((one, other) => other[1] - one[1] || (one[0] < other[0] ? -1 : 1));
  chips($("found-chips"), sorted.length > 1 ? sorted.map(([name, count]) => [name, `${name} ${count}`]) : [], shownClass,
    (name) => { shownClass = name; showAnswer(); });
  const k = Math.min(MOST, Number(addressed()[1].get("k")) || FIRST);
  for (const row of ROWS) {
    const section = document.querySelector(`[data-row="${row}"]`);
    const hits = answer[row].filter(({ photo }) => !shownClass || photo.class === shownClass);
    const full = answer[row].length >= k;
    section.querySelector(".count").textContent = hits.length ? `${hits.length}${full && !shownClass ? "+" : ""}` : "";
    section.querySelector(".hint").textContent = hints[row];
    section.querySelector(".grid").replaceChildren(...hits.map(({ photo, similarity }) => tile(photo, similarity.toFixed(2))));
    if (!hits.length) section.querySelector(".grid").append(make("p", { class: "none", textContent: "None" }));
    section.querySelector(".more").hidden = !full || k >= MOST;
  }
  showSame(answer);
}

// which of the first photos are copies by their pixels comes a moment later
const showSame = guarded(async (own) => {
  if (!own.same) {
    const ids = [...own.copies, ...own.instances].map(({ photo }) => photo.id).filter((id) => !own.query.photo || id !== own.query.photo.id);
    if (!ids.length) return;
    const query = new URLSearchParams(own.query.photo ? { photo: own.query.photo.id } : { upload: own.query.upload });
    if (own.query.box) query.set("box", own.query.box.join(","));
    query.set("of", ids.slice(0, COMPARED).join(","));
    own.same = new Map((await ask(`/api/same?${query}`)).map(({ id, verified }) => [id, verified]));
  }
  if (own !== answer) return;
  for (const open of document.querySelectorAll("#found .tile .open")) {
    const share = own.same.get(open.photo.id), score = open.querySelector(".score");
    if (share !== undefined && !score.classList.contains("same")) {
      score.classList.add("same");
      score.textContent = `same ${score.textContent}`;
      score.title = `A copy: ${percent(share)} of the pixels are the same`;
    }
  }
});

const byFile = guarded(async (file) => {
  if (!file) return;
  if (status && file.size > status.limits.bytes) {
    tell(`the photo has ${size(file.size)}, more than the ${size(status.limits.bytes)} allowed`);
    return;
  }
  tell("");
  const found = await searched(ask(`/api/search?k=${FIRST}`, { method: "POST", body: file }));
  if (!found) return;
  // its answer is there already
  const target = address("search", { upload: found.query.upload });
  history.pushState(null, "", target);
  for (const each of ["search", "album", "duplicates"]) {
    $(`view-${each}`).hidden = each !== "search";
    $(`tab-${each}`).toggleAttribute("aria-current", each === "search");
  }
  view = "search";
});

function again(change) {
  const { query } = answer;
  go("search", { photo: query.photo ? query.photo.id : null, upload: query.upload, ...change });
}

// a part of the query

function drawBox(box) {
  $("box").hidden = !box;
  if (!box) return;
  const [left, top, right, bottom] = box;
  const style = $("box").style;
  style.left = `${100 * left}%`;
  style.top = `${100 * top}%`;
  style.width = `${100 * (right - left)}%`;
  style.height = `${100 * (bottom - top)}%`;
}

function listenForBox() {
  const frame = $("frame");
  let start = null;
  const place = (event) => {
    const around = $("picture").getBoundingClientRect();
    return [(event.clientX - around.left) / around.width, (event.clientY - around.top) / around.height]
      .map((each) => Math.min(1, Math.max(0, each)));
  };
  const boxTo = (event) => {
    const end = place(event);
    return [Math.min(start[0], end[0]), Math.min(start[1], end[1]), Math.max(start[0], end[0]), Math.max(start[1], end[1])];
  };
  frame.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !answer) return;
    start = place(event);
    frame.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  frame.addEventListener("pointermove", (event) => { if (start) drawBox(boxTo(event)); });
  frame.addEventListener("pointerup", (event) => {
    if (!start) return;
    const box = boxTo(event);
    start = null;
    if (box[2] - box[0] < SMALLEST_BOX || box[3] - box[1] < SMALLEST_BOX) drawBox(answer.query.box);
    else again({ box: box.map((each) => each.toFixed(4)).join(",") });
  });
  frame.addEventListener("pointercancel", () => { start = null; drawBox(answer && answer.query.box); });
}

// album

function pager(where, page, pages, choose) {
  if (pages <= 1) { where.replaceChildren(); return; }
  const turn = (text, to, key) => {
    const button = make("button", { textContent: text, disabled: to < 1 || to > pages, title: `${text} (${key})` });
    button.dataset.key = key;
    button.addEventListener("click", () => { choose(to); scrollTo(0, 0); });
    return button;
  };
  const field = make("input", { type: "number", min: 1, value: page, "aria-label": "Page" });
  field.addEventListener("change", () => choose(Math.min(pages, Math.max(1, Math.round(Number(field.value)) || 1))));
  where.replaceChildren(turn("Previous", page - 1, "p"), field,
    make("span", { textContent: Number.isFinite(pages) ? `of ${number(pages)}` : "" }), turn("Next", page + 1, "n"));
}

async function showAlbum(values, own) {
  const page = Math.max(1, Number(values.get("page")) || 1), name = values.get("class"), text = values.get("text");
  const query = new URLSearchParams({ offset: (page - 1) * PAGE, limit: PAGE });
  if (text) query.set("text", text); else if (name) query.set("class", name);
  $("text").value = text || "";
  let found, classes;
  try {
    [classes, found] = await Promise.all([ask("/api/classes"), ask(`/api/photos?${query}`)]);
  } catch (error) {
    if (own !== request) return;
    $("album").replaceChildren();
    $("album-pager").replaceChildren();
    $("album-note").textContent = "";
    throw error;
  }
  if (own !== request) return;
  $("words").hidden = !classes.length;
  const first = classes.slice(0, 40);
  if (name && !first.some((each) => each.name === name)) first.unshift(...classes.filter((each) => each.name === name));
  chips($("album-chips"), first.map((each) => [each.name, `${each.name} ${number(each.photos)}`]), text ? null : name,
    (chosen) => go("album", { class: chosen }));
  const why = status && status.why_passed_over ? `; passed over: ${status.why_passed_over}` : "";
  $("album-note").textContent = text ? `Most probable first: ${text}` : `${number(found.total)} photos${why}`;
  $("album").replaceChildren(...found.photos.map((photo) => tile(photo, text ? percent(photo.probability) : undefined)));
  const last = found.total === null ? (found.more ? Infinity : page) : Math.ceil(found.total / PAGE);
  pager($("album-pager"), page, last, (to) => go("album", { class: name, text, page: to }));
}

// duplicates; what was decided is kept by album

// one after the other, each from what the one before left; what could not be noted is not shown as decided
function decide(group, change) {
  deciding = deciding.then(guarded(async () => {
    const decision = { ...group.decision, ...change(group.decision) };
    await ask("/api/decisions", { method: "POST", body: JSON.stringify({ key: group.key, ...decision }) });
    group.decision = decision;
    redraw(group);
  }));
}

function redraw(group) {
  const before = group.shown;
  if (!before.isConnected) return;
  const focused = before.contains(document.activeElement) ? document.activeElement : null;
  const fresh = showGroup(group, group.place);
  before.replaceWith(fresh);
  mark();
  if (!focused) return;
  const id = focused.closest(".tile")?.dataset.id;
  const kind = ["mark", "open", "info", "skip"].find((each) => focused.classList.contains(each));
  fresh.querySelector(id ? `[data-id="${id}"] .${kind}` : `.${kind}`)?.focus();
}

async function showDuplicates(values, own) {
  const page = Math.max(1, Number(values.get("page")) || 1), kind = values.get("kind");
  const query = new URLSearchParams({ offset: (page - 1) * GROUPS, limit: GROUPS });
  if (kind) query.set("kind", kind);
  await deciding;
  const found = await ask(`/api/duplicates?${query}`);
  if (own !== request) return;
  const running = status && status.comparing.running;
  $("compare").disabled = Boolean(running);
  $("list").hidden = !found.found;
  chips($("kinds"), found.found ? Object.entries(KIND_WORDS) : [], kind, (chosen) => go("duplicates", { kind: chosen }));
  let note = "Photos that are there twice: byte for byte, as copies, or similar. Nothing is moved or deleted here.";
  if (running) note = status.comparing.total ? `Comparing, ${percent(status.comparing.done / status.comparing.total)} ...` : "Comparing ...";
  else if (found.found) {
    note = `${number(found.total)} groups; ${number(found.spare)} photos may go by the proposal, ${size(found.spare_bytes)}. Nothing is moved or deleted here: what you decide is kept, and mg-keras duplicates --move-to does it.`;
    if (found.verified) note += " Copies are the same by their pixels; look at them before they go.";
    else if (found.estimated) note += " The threshold of copies is a rule of thumb: look at them first.";
  }
  $("duplicates-note").textContent = note;
  groups = found.groups;
  current = 0;
  $("groups").replaceChildren(...groups.map(showGroup));
  pager($("groups-pager"), page, Math.ceil(found.total / GROUPS), (to) => go("duplicates", { kind, page: to }));
  mark();
}

function showGroup(group, place) {
  const { skip, go: going } = group.decision, { changed } = group;
  const made = make("section", { class: `group${skip ? " skipped" : ""}${changed ? " changed" : ""}`, "aria-label": `Group ${place + 1}, ${KIND_WORDS[group.kind]}: ${group.keep.name} and ${group.members.length} more` });
  Object.assign(group, { shown: made, place });
  const choose = () => { current = place; mark(); tell(""); };
  const skipping = make("button", { class: "skip", textContent: skip ? "Decide after all" : "Skip: keep all", disabled: changed,
    "aria-label": skip ? `Decide after all about group ${place + 1}` : `Skip: keep all of group ${place + 1}` });
  skipping.addEventListener("click", () => { choose(); decide(group, (now) => ({ skip: !now.skip })); });
  let hint = group.kind === "similar" ? "Look at them: similar photos are kept, unless you say otherwise" : `Proposed to keep: ${group.why}`;
  if (changed) hint = "A photo of this group has changed or is gone: find duplicates again";
  made.append(make("div", { class: "head" }, make("span", { class: "badge", textContent: KIND_WORDS[group.kind] }),
    make("span", { class: "hint", textContent: hint }), skipping));
  const all = [{ photo: group.keep, score: "" }, ...group.members.map(({ photo, similarity, verified }) => ({ photo,
    score: verified === null ? similarity.toFixed(2) : `${percent(verified)} same` }))];
  const grid = make("div", { class: "grid" });
  for (const { photo, score } of all) {
    const each = tile(photo, score);
    const goes = !skip && !changed && going.includes(photo.id);
    each.dataset.id = photo.id;
    each.classList.toggle("going", goes);
    each.querySelector(".name").textContent = `${photo.width ? `${photo.width}x${photo.height}, ` : ""}${size(photo.bytes)}`;
    const button = make("button", { class: `mark ${goes ? "go" : "keep"}`, textContent: goes ? "Goes" : "Keep", disabled: skip || changed,
      "aria-pressed": String(goes), "aria-label": `${goes ? "Goes" : "Keep"}: ${photo.name}`, title: `${photo.name}: keep it, or let it go (x)` });
    button.addEventListener("click", () => {
      choose();
      decide(group, (now) => {
        const next = now.go.includes(photo.id) ? now.go.filter((id) => id !== photo.id) : [...now.go, photo.id];
        if (next.length >= all.length) throw new Error("one of a group stays: keep another one first");
        return { go: next };
      });
    });
    each.append(make("p", { class: "path hint", textContent: photo.name }), button);
    grid.append(each);
  }
  made.append(grid);
  return made;
}

function mark() {
  document.querySelectorAll(".group").forEach((each, place) => each.classList.toggle("current", place === current));
}

const compare = guarded(async () => {
  tell("");
  await ask(`/api/duplicates?precision=${$("precision").value}`, { method: "POST" });
  await look();
  lookSoon();
  go("duplicates", {});
});

const download = guarded(async () => {
  await deciding;
  const list = [];
  let changed = 0;
  for (let offset = 0, total = 1; offset < total; offset += MOST) {
    const found = await ask(`/api/duplicates?offset=${offset}&limit=${MOST}`);
    total = found.total;
    for (const group of found.groups) {
      // what was to be kept may be gone
      if (group.changed) { changed += 1; continue; }
      const { skip, go: going } = group.decision;
      const photos = [group.keep, ...group.members.map((each) => each.photo)];
      const gone = skip ? [] : photos.filter((photo) => going.includes(photo.id));
      if (gone.length) list.push({ kind: group.kind, keep: photos.filter((photo) => !gone.includes(photo)).map((photo) => photo.name), go: gone.map((photo) => photo.name) });
    }
  }
  const url = URL.createObjectURL(new Blob([JSON.stringify({ folder: status.folder, groups: list }, null, 2)], { type: "application/json" }));
  make("a", { href: url, download: "duplicates.json" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  tell(changed && `${changed === 1 ? "1 group is" : `${number(changed)} groups are`} left out of the list: photos have changed or are gone; find duplicates again`);
});

// what goes on

async function look() {
  const before = status;
  try {
    status = await ask("/api/status");
  } catch (error) {
    $("state").textContent = error.message;
    return;
  }
  const { indexing, comparing } = status;
  const name = status.folder.split("/").filter(Boolean).pop() || status.folder;
  $("folder").textContent = name;
  $("folder").title = status.folder;
  document.title = `${name}: photo search`;
  let text = `${number(status.photos)} photos`;
  if (status.unusable) text += `, ${number(status.unusable)} can't be used`;
  if (status.passed_over) text += `; ${number(status.passed_over)} ${status.passed_over === 1 ? "file" : "files"} passed over`;
  if (indexing.running) text += indexing.total ? `; describing ${number(indexing.done)} of ${number(indexing.total)}` : "; looking at the folder";
  else if (indexing.error) text += `; ${indexing.error}`;
  $("state").textContent = text;
  $("update").disabled = indexing.running;
  $("update").hidden = $("tab-duplicates").hidden = status.collection;
  const progress = $("progress");
  progress.hidden = !indexing.running && !comparing.running;
  const work = indexing.running ? indexing : comparing;
  if (work.total) progress.value = work.done / work.total;
  else progress.removeAttribute("value");
  if (before && view === "duplicates" && before.comparing.running !== comparing.running) {
    await show(true);
    if (comparing.error) tell(comparing.error);
  }
  // results come while the index grows; what is being looked at stays
  const grown = before && before.photos !== status.photos;
  if (grown && view === "album" && addressed()[1].size === 0 && scrollY < 200 && !$("album").contains(document.activeElement)) await show(true);
}

let lookSoon = () => {};

async function keepLooking() {
  for (;;) {
    const busy = !status || status.indexing.running || status.comparing.running;
    await new Promise((done) => { lookSoon = done; setTimeout(done, busy ? 500 : 5000); });
    if (!document.hidden) await guarded(look)();
  }
}

// keys

function move(key) {
  const tiles = [...document.querySelectorAll(`#view-${view} .tile .open`)];
  const from = document.activeElement.closest?.(".tile")?.querySelector(".open");
  if (!from) { tiles[0]?.focus(); return; }
  const own = from.getBoundingClientRect();
  const [x, y] = [own.left + own.width / 2, own.top + own.height / 2];
  let best = null, least = Infinity;
  for (const each of tiles) {
    if (each === from) continue;
    const other = each.getBoundingClientRect();
    const [dx, dy] = [other.left + other.width / 2 - x, other.top + other.height / 2 - y];
    const along = { ArrowLeft: -dx, ArrowRight: dx, ArrowUp: -dy, ArrowDown: dy }[key];
    const across = Math.abs(key === "ArrowLeft" || key === "ArrowRight" ? dy : dx);
    const sideways = key === "ArrowLeft" || key === "ArrowRight";
    if (along < 5 || (sideways && across > own.height / 2)) continue;
    const distance = along + 3 * across;
    if (distance < least) { least = distance; best = each; }
  }
  best?.focus();
  best?.scrollIntoView({ block: "nearest" });
}

function press(event) {
  const writing = event.target.matches("input, select, textarea");
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (writing) { if (event.key === "Escape") event.target.blur(); return; }
  const photo = document.activeElement.closest?.(".tile")?.querySelector(".open")?.photo;
  const group = document.querySelectorAll(".group")[current];
  const keys = {
    1: () => go("search"), 2: () => go("album"), 3: () => go("duplicates"),
    "?": () => $("keys").showModal(),
    o: () => $("file").click(),
    i: () => photo && details(photo),
    "/": () => { if (view !== "album") go("album"); setTimeout(() => $("text").focus(), 50); },
    n: () => document.querySelector(`#view-${view} [data-key="n"]:enabled`)?.click(),
    p: () => document.querySelector(`#view-${view} [data-key="p"]:enabled`)?.click(),
    Escape: () => { if (view === "search" && answer && answer.query.box) again({}); tell(""); },
  };
  for (const key of ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]) keys[key] = () => move(key);
  if (view === "duplicates") {
    const to = (place) => {
      current = Math.min(groups.length - 1, Math.max(0, place));
      mark();
      const shown = document.querySelectorAll(".group")[current];
      shown?.scrollIntoView({ block: "center" });
      shown?.querySelector(".open")?.focus({ preventScroll: true });
    };
    Object.assign(keys, {
      j: () => to(current + 1), k: () => to(current - 1),
      s: () => group?.querySelector(".skip").click(),
      x: () => document.activeElement.closest?.(".tile")?.querySelector(".mark")?.click(),
    });
  }
  if (Object.hasOwn(keys, event.key)) { event.preventDefault(); keys[event.key](); }
}

// beginnings

function listen() {
  const given = (event) => [...(event.dataTransfer || event.clipboardData)?.files || []];
  let depth = 0;
  addEventListener("dragenter", (event) => { if (event.dataTransfer?.types.includes("Files")) { depth += 1; $("dropping").hidden = false; } });
  addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); $("dropping").hidden = depth === 0; });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => {
    event.preventDefault();
    depth = 0;
    $("dropping").hidden = true;
    byFile(given(event)[0]);
  });
  addEventListener("paste", (event) => byFile(given(event)[0]));
  for (const id of ["file", "capture"]) {
    $(id).addEventListener("change", () => { byFile($(id).files[0]); $(id).value = ""; });
  }
  $("choose").onclick = () => $("file").click();
  $("camera").onclick = $("camera-again").onclick = () => $("capture").click();
  $("another").onclick = () => $("file").click();
  $("whole").onclick = () => again({});
  $("update").onclick = guarded(async () => { tell(""); await ask("/api/update", { method: "POST" }); await look(); lookSoon(); });
  $("compare").onclick = compare;
  $("list").onclick = download;
  $("words").onsubmit = (event) => { event.preventDefault(); go("album", { text: $("text").value.trim() }); };
  for (const more of document.querySelectorAll(".more")) {
    more.onclick = () => {
      const box = answer.query.box && answer.query.box.join(",");
      again({ box, k: Math.min(MOST, 4 * (Number(addressed()[1].get("k")) || FIRST)) });
    };
  }
  $("details-close").onclick = () => $("details").close();
  $("keys-close").onclick = () => $("keys").close();
  $("help").onclick = () => $("keys").showModal();
  for (const id of ["details", "keys"]) $(id).addEventListener("click", (event) => { if (event.target === $(id)) $(id).close(); });
  addEventListener("keydown", press);
  addEventListener("hashchange", () => show());
  listenForBox();
}

listen();
guarded(async () => { await look(); await show(); keepLooking(); })();
