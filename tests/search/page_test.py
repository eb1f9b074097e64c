"""The page in a real browser, headless Chromium; skipped where there is none."""

import base64
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mg_keras.search.album import Album
from mg_keras.search.decisions import Decisions
from mg_keras.search.http_api import SearchServer
from tests.search.fake import FakeModel, album, noise

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")

from selenium.common.exceptions import StaleElementReferenceException  # noqa: E402
from selenium.webdriver import ActionChains  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

HOSTILE = "<img src=x onerror=document.title='taken'>.png"
COUNT = 16
GIVE = """
const bytes = Uint8Array.from(atob(arguments[1]), (each) => each.charCodeAt(0)), given = new DataTransfer();
given.items.add(new File([bytes], "a.png", { type: "image/png" }));
if (arguments[0] === "paste") dispatchEvent(new ClipboardEvent("paste", { clipboardData: given }));
else for (const name of ["dragenter", "drop"]) dispatchEvent(new DragEvent(name, { dataTransfer: given }));
"""

FAIL_ONCE = """
const real = window.fetch;
window.fetch = (path, options) => {
  if (path !== "/api/decisions") return real(path, options);
  window.fetch = real;
  return Promise.resolve(new Response(JSON.stringify({ error: "the disk is full" }), { status: 400 }));
};
"""

# what would be downloaded
CATCH_LIST = """
URL.createObjectURL = (blob) => { blob.text().then((text) => { window.listed = text; }); return "about:blank"; };
HTMLAnchorElement.prototype.click = () => {};
"""

# each search waits to be let go
HOLD = """
const real = window.fetch;
window.held = [];
window.fetch = (path, options) => String(path).startsWith("/api/search")
  ? new Promise((done) => held.push(() => done(real(path, options)))) : real(path, options);
"""
# resolves when the answer has come and what it does is done
LET_GO = "held.shift()(); setTimeout(arguments[0], 500);"

MISSING = [program for program in ("chromium", "chromedriver") if not shutil.which(program)]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not on the PATH: {', '.join(MISSING)}"),
]


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # the driver that is there: Selenium would look for one elsewhere
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """12 photos, one of them twice, once smaller and once in another colour, and one with a hostile name; a raw file;
    beside them one with two in it."""
    root = tmp_path_factory.mktemp("page")
    paths = album(root / "photos", 12)
    shutil.copy(paths[0], root / "photos" / "twice.png")
    noise(1, (12, 12)).save(root / "photos" / "small.jpg", quality=95)
    noise(50).save(root / "photos" / HOSTILE)
    tinted = np.asarray(noise(3), int)
    tinted[:, :, tinted.mean(axis=(0, 1)).argmin()] += 90
    Image.fromarray(tinted.clip(0, 255).astype(np.uint8)).save(root / "photos" / "tinted.png")
    (root / "photos" / "raw.cr2").write_bytes(b"raw")
    both = Image.new("RGB", (400, 200))
    for number in (4, 5):
        both.paste(noise(number, (200, 200)), (200 * (number - 4), 0))
    both.save(root / "both.png")
    return root


@pytest.fixture(scope="module")
def served(photos):
    searched = Album(photos / "photos", FakeModel(), photos / "index")
    searched.update()
    searched.wait()
    server = SearchServer(searched)
    server.start()
    yield searched, f"http://127.0.0.1:{server.port}"
    server.stop()
    searched.stop()


@pytest.fixture
def page(browser, served):
    # what came before is gone, the place in the page, too
    browser.get("about:blank")
    browser.get(served[1])
    wait(browser, lambda found: str(COUNT) in found.find_element(By.ID, "state").text)
    return browser


def names(page, selector):
    # in one go: the page may be drawing them anew
    texts = "return [...document.querySelectorAll(arguments[0])].map(each => each.textContent)"
    return page.execute_script(texts, f"{selector} .tile .name")


def copies(page):
    return names(page, "section[data-row=copies]")


def wait(page, condition):
    WebDriverWait(page, 20, 0.05, ignored_exceptions=[StaleElementReferenceException]).until(condition)


def give(page, how, path):
    page.execute_script(GIVE, how, base64.b64encode(path.read_bytes()).decode())


def press(page, *keys):
    for key in keys:
        ActionChains(page).send_keys(key).perform()


def press_chip(page, where):
    """The last of the classes, the one with the fewest photos."""
    page.execute_script("[...document.querySelectorAll(`${arguments[0]} button`)].pop().click()", where)


@pytest.mark.slow
def test_photos_are_given_in_every_way_and_filtered_by_class(page, photos):
    album_of = photos / "photos"
    page.find_element(By.ID, "file").send_keys(str(album_of / "00001.png"))
    wait(page, lambda found: set(copies(found)) == {"00001.png", "small.jpg"})
    # by their pixels, too
    wait(page, lambda found: len(found.find_elements(By.CSS_SELECTOR, "#found .score.same")) == 2)
    give(page, "drop", album_of / "00002.png")
    wait(page, lambda found: copies(found) == ["00002.png"])
    give(page, "paste", album_of / "00003.png")
    wait(page, lambda found: copies(found)[:1] == ["00003.png"])
    # what is no photo is told, and the page goes on
    give(page, "drop", photos / "index" / "lock")
    wait(page, lambda found: found.find_element(By.ID, "message").is_displayed())
    # chips leave one class of what was found
    every = names(page, "#found")
    press_chip(page, "#found-chips")
    assert names(page, "#found") == ["tinted.png"]
    press_chip(page, "#found-chips")
    assert names(page, "#found") == every
    # a found photo is the next query
    first = names(page, "section[data-row=kind]")[0]
    page.find_element(By.CSS_SELECTOR, "section[data-row=kind] .tile .open").click()
    wait(page, lambda found: first in found.find_element(By.ID, "query-name").text)


@pytest.mark.slow
def test_a_region_of_the_query_is_searched_by(page, photos):
    give(page, "drop", photos / "both.png")
    wait(
        page, lambda found: "upload=" in found.current_url and found.find_element(By.ID, "picture").size["height"] > 50
    )
    assert copies(page) == []
    frame = page.find_element(By.ID, "picture")
    width, height = frame.size["width"], frame.size["height"]
    for side, name in ((-1, "00004.png"), (1, "00005.png")):
        drag = ActionChains(page).move_to_element_with_offset(frame, 0, -height // 2 + 1).click_and_hold()
        drag.move_by_offset(side * (width // 2 - 1), height - 2).release().perform()
        wait(page, lambda found, name=name: copies(found) == [name])
    assert "box=" in page.current_url
    press(page, Keys.ESCAPE)
    wait(page, lambda found: "box=" not in found.current_url and copies(found) == [])
    page.back()
    wait(page, lambda found: copies(found) == ["00005.png"])


def test_the_album_by_keys(page):
    press(page, "2")
    wait(page, lambda found: len(names(found, "#album")) == COUNT)
    assert page.find_element(By.ID, "state").text == f"{COUNT} photos; 1 file passed over"
    assert "passed over: a camera's raw file" in page.find_element(By.ID, "album-note").text
    press(page, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, "i")
    name = names(page, "#album")[1]
    wait(page, lambda found: found.find_element(By.ID, "details-name").text == name)
    press(page, Keys.ESCAPE, Keys.ENTER)
    wait(page, lambda found: name in found.find_element(By.ID, "query-name").text)
    press(page, "/")
    wait(page, lambda found: found.switch_to.active_element.get_attribute("id") == "text")
    press(page, "crimson" + Keys.ENTER)
    wait(page, lambda found: "crimson" in found.find_element(By.ID, "album-note").text)
    page.find_element(By.ID, "tab-search").click()
    page.find_element(By.ID, "tab-album").click()
    wait(page, lambda found: len(names(found, "#album")) == COUNT)
    press_chip(page, "#album-chips")
    wait(page, lambda found: 0 < len(names(found, "#album")) < COUNT)


def test_duplicates_are_kept_and_skipped_and_that_is_remembered(page, served):
    searched, _ = served
    press(page, "3")
    wait(page, lambda found: found.find_element(By.ID, "compare").is_displayed())
    page.find_element(By.ID, "compare").click()
    groups = (By.CSS_SELECTOR, "#groups .group")
    wait(page, lambda found: len(found.find_elements(*groups)) == 3)
    # without seeing them, each button is known by its photo or its group
    labels = [each.accessible_name for each in page.find_elements(By.CSS_SELECTOR, ".group, .mark, .skip")]
    assert len(set(labels)) == len(labels) == 3 + 6 + 3
    assert "Keep: 00000.png" in labels
    assert "Goes: twice.png" in labels
    assert "Skip: keep all of group 1" in labels
    assert "Group 1, Same byte for byte: 00000.png and 1 more" in labels
    # the first is skipped, and of the second the small one goes
    press(page, "s")
    wait(page, lambda found: "skipped" in found.find_element(*groups).get_attribute("class"))
    press(page, "j")
    small = "#groups .group:nth-child(2) .tile:nth-child(2)"
    page.find_element(By.CSS_SELECTOR, f"{small} .mark").click()
    wait(page, lambda found: "going" in found.find_element(By.CSS_SELECTOR, small).get_attribute("class"))
    assert "same" in page.find_element(By.CSS_SELECTOR, f"{small} .score").text
    page.find_element(By.CSS_SELECTOR, "#groups .group:nth-child(2) .tile:nth-child(1) .mark").click()
    wait(page, lambda found: "one of a group stays" in found.find_element(By.ID, "message").text)
    # it is in sight, however far down one is
    page.execute_script("document.getElementById('view-duplicates').style.minHeight = '3000px'; scrollTo(0, 1500);")
    assert page.execute_script("return scrollY") == 1500
    place = page.execute_script("return document.getElementById('message').getBoundingClientRect().toJSON()")
    assert 0 <= place["top"] < place["bottom"] < 300
    page.execute_script("document.getElementById('view-duplicates').style.minHeight = ''; scrollTo(0, 0);")
    # what the server doesn't take is not shown as decided
    page.execute_script(FAIL_ONCE)
    third = "#groups .group:nth-child(3)"
    page.find_element(By.CSS_SELECTOR, f"{third} .skip").click()
    wait(page, lambda found: found.find_element(By.ID, "message").text == "the disk is full")
    assert "skipped" not in page.find_element(By.CSS_SELECTOR, third).get_attribute("class")
    # each that comes at once is noted after the one before
    skips = "for (let time = 0; time < 4; time += 1) document.querySelectorAll('.skip')[0].click();"
    page.execute_async_script(f"{skips} deciding.then(arguments[0])")
    assert "skipped" in page.find_element(*groups).get_attribute("class")
    page.refresh()
    wait(page, lambda found: len(found.find_elements(*groups)) == 3)
    assert "skipped" in page.find_element(*groups).get_attribute("class")
    assert "going" in page.find_element(By.CSS_SELECTOR, small).get_attribute("class")
    # the command sees the same
    with Decisions(searched.path) as decisions:
        applied = decisions.applied(searched.duplicates, searched.index)
    assert (applied.count, applied.unmatched) == (2, 0)
    assert [(photo.name, keep.name) for photo, keep in applied.found.spare] == [("small.jpg", "00001.png")]


def test_a_group_that_has_changed_is_shown_so_and_left_out_of_the_list(page, served, photos):
    searched, _ = served
    searched.compare(0.9)
    searched.wait()
    # one of them is gone, and then it is back
    (photos / "photos" / "twice.png").rename(photos / "twice.png")
    try:
        press(page, "3")
        wait(page, lambda found: len(found.find_elements(By.CSS_SELECTOR, "#groups .group")) == 3)
        (changed,) = page.find_elements(By.CSS_SELECTOR, "#groups .group.changed")
        assert "find duplicates again" in changed.find_element(By.CSS_SELECTOR, ".head .hint").text
        assert not any(button.is_enabled() for button in changed.find_elements(By.CSS_SELECTOR, ".mark, .skip"))
        page.execute_script(CATCH_LIST)
        page.find_element(By.ID, "list").click()
        wait(page, lambda found: found.execute_script("return window.listed"))
        assert "twice.png" not in page.execute_script("return window.listed")
        wait(page, lambda found: "1 group is left out" in found.find_element(By.ID, "message").text)
    finally:
        (photos / "twice.png").rename(photos / "photos" / "twice.png")


def test_an_answer_that_comes_late_is_not_shown_in_place_of_what_was_asked_for_since(page, served, photos):
    searched, _ = served
    number = searched.index.photo("00004.png").id
    page.execute_script(HOLD)
    page.execute_script("go('search', { photo: arguments[0] })", number)
    wait(page, lambda found: found.execute_script("return held.length") == 1)
    assert "busy" in page.find_element(By.TAG_NAME, "body").get_attribute("class")
    # nothing is looked for
    page.execute_script("go('search')")
    page.execute_async_script(LET_GO)
    assert page.find_element(By.ID, "drop").is_displayed()
    assert not page.find_element(By.ID, "chosen").is_displayed()
    # another view, to which Back would lead
    give(page, "drop", photos / "photos" / "00002.png")
    wait(page, lambda found: found.execute_script("return held.length") == 1)
    press(page, "2")
    wait(page, lambda found: len(names(found, "#album")) == COUNT)
    assert "busy" not in page.find_element(By.TAG_NAME, "body").get_attribute("class")
    page.execute_async_script(LET_GO)
    assert page.current_url.endswith("#album")
    assert page.find_element(By.ID, "view-album").is_displayed()
    # what draws the album anew, as it grows, drops no photo that was given meanwhile
    give(page, "drop", photos / "photos" / "00003.png")
    wait(page, lambda found: found.execute_script("return held.length") == 1)
    page.execute_async_script("show(true).then(arguments[0])")
    assert "busy" in page.find_element(By.TAG_NAME, "body").get_attribute("class")
    page.execute_async_script(LET_GO)
    wait(page, lambda found: copies(found)[:1] == ["00003.png"])
    assert "upload=" in page.current_url


def test_a_hostile_name_is_only_a_name(page, photos):
    give(page, "drop", photos / "photos" / HOSTILE)
    wait(page, lambda found: HOSTILE in copies(found))
    assert page.title != "taken"
    assert not page.find_elements(By.CSS_SELECTOR, "img[src='x']")


def test_the_page_fits_a_phone_and_logs_no_error(page):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    # by what the last of each view to come is
    for key, last in (("1", "#drop"), ("2", "#album .tile .name"), ("3", "#duplicates-note:not(:empty)")):
        press(page, key)
        wait(page, lambda found, last=last: found.find_element(By.CSS_SELECTOR, last).is_displayed())
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    logged = [each["message"] for each in page.get_log("browser") if each["level"] == "SEVERE"]
    # a file that was no photo was refused
    assert [each for each in logged if "/api/search" not in each] == [], json.dumps(logged)


def test_a_tile_without_a_picture_says_why(browser, tmp_path):
    album(tmp_path / "photos", 2)
    noise(60).save(tmp_path / "outside.png")
    (tmp_path / "photos" / "link.png").symlink_to(tmp_path / "outside.png")
    linked = Album(tmp_path / "photos", FakeModel(), tmp_path / "index")
    linked.update()
    linked.wait()
    (tmp_path / "photos" / "00000.png").unlink()
    server = SearchServer(linked)
    server.start()
    try:
        browser.get(f"http://127.0.0.1:{server.port}/#album")
        wait(browser, lambda found: len(found.find_elements(By.CSS_SELECTOR, "#album .why")) == 2)
        gone, outside = (each.text for each in browser.find_elements(By.CSS_SELECTOR, "#album .why"))
        assert "is not there any more" in gone
        assert "lies outside the folder, perhaps behind a link" in outside
        assert len(browser.find_elements(By.CSS_SELECTOR, "#album .tile")) == 3
    finally:
        server.stop()
        linked.stop()


def test_without_the_token_nothing_is_shown(browser, served):
    searched, _ = served
    server = SearchServer(searched, token="a-token-of-the-test")
    server.start()
    try:
        address = f"http://127.0.0.1:{server.port}"
        browser.get(f"{address}/?token=a-token-of-the-test")
        wait(browser, lambda found: str(COUNT) in found.find_element(By.ID, "state").text)
        browser.delete_all_cookies()
        browser.get(address)
        assert not browser.find_elements(By.ID, "drop")
        assert browser.find_elements(By.CSS_SELECTOR, "input")
    finally:
        server.stop()
