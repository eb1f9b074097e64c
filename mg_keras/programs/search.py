"""Finds photos of a folder by a photo: mg-keras search FOLDER PHOTO, or without PHOTO in a page of the browser.

Three lists come from the one descriptor of the photo: its copies (edited, cropped, compressed), photos of the same
object or place, and photos of the same kind. `--class schooner` finds photos by the name of a class instead. The
folder's photos are described once; later only what has changed is. With neither, a page is served to this machine
alone, until Ctrl-C; where --host lets other machines reach it, to those who have the address with its token.

In place of FOLDER, a collection of a vector database that mg-keras push filled, such as
qdrant:http://localhost:6333/photos (mg-keras push --help): PHOTO is looked for there. Its page shows the
photos that are files below --photos.
"""

import contextlib
import os
import secrets
import signal
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mg_keras import databases
from mg_keras.errors import UserError
from mg_keras.files import atomic_write_json, check_file, printable_name
from mg_keras.programs import albums
from mg_keras.programs.common import Parser, number

# of flags that are refused where they have no part: whether one was given must be told
_DEFAULTS = {"k": 10, "precision": 0.9, "expand": 0, "host": "127.0.0.1", "port": 8765, "browser": True}


def main(arguments: Sequence[str] | None = None) -> None:
    """Arguments, the index, and what is found."""
    parser = Parser("mg-keras search", __doc__)
    parser.add_argument(
        "folder", type=str, help="the album: photos at any depth; or a collection, or an index of mg-keras index"
    )
    parser.add_argument("photo", type=str, nargs="?", help="the photo to find others by; without it a page is served")
    parser.add_argument("--class", type=str, help="a class to find photos of, such as schooner")
    parser.add_argument(
        "--k", type=number(int, at_least=1), help=f"of PHOTO or a class: photos a list, at most; {_default('k')}"
    )
    parser.add_argument(
        "--precision",
        type=number(float, above=0, below=1),
        help=f"of PHOTO: share of a list that shall be right; {_default('precision')}",
    )
    parser.add_argument(
        "--expand",
        type=number(int, at_least=0),
        help=f"of PHOTO: neighbours that it is joined with; {_default('expand')}",
    )
    parser.add_argument("--out", type=str, help="a file in .json for what is found")
    parser.add_argument("--host", type=str, help=f"of the page: the address to listen on; {_default('host')}")
    parser.add_argument(
        "--port",
        type=number(int, at_least=0, at_most=65535),
        help=f"of the page; 0 takes a free one; {_default('port')}",
    )
    parser.add_argument("--browser", type=bool, help=f"of the page; false: it is not opened; {_default('browser')}")
    parser.add_argument("--photos", type=str, help="of the page of a collection: the folder of the photos it may show")
    albums.add_arguments(parser)
    options = parser.parse_args(arguments)
    name = options["class"]
    if options.photo is not None and name is not None:
        raise UserError("one of PHOTO and --class is enough: what to look for")
    if databases.is_collection(options.folder):
        _check_for_collection(options)
    elif options.photos is not None:
        raise UserError(f"--photos is for a collection: {options.folder} is none")
    _check_used(options)
    for flag, value in _DEFAULTS.items():
        if options[flag] is None:
            options[flag] = value
    if options.photo is None and name is None:
        from mg_keras.search.sharded import is_sharded

        folder = albums.existing(options.photos or options.folder)
        if is_sharded(folder):
            raise UserError(f"{printable_name(folder)} is an index of shards, which has no page: give PHOTO, too")
        _serve(folder, options)
        return
    if options.out:
        if not options.out.endswith(".json"):
            raise UserError(f"--out must be a name in .json, received {options.out}")
        # before an album is described, as what is looked for
        check_file(options.out)
    with _index(options) as index:
        if name:
            classes, lists = [], {"class": index.find_class(name, options.k)}
        else:
            found = index.find(options.photo, options.k, options.precision, options.expand)
            classes = found.classes
            lists = {
                "copies": [(hit.photo, hit.similarity) for hit in found.copies],
                "instances": [(hit.photo, hit.similarity) for hit in found.instances],
                "kind": [(hit.photo, hit.similarity) for hit in found.kind],
            }
        if not len(index):
            raise UserError(f"no photo of {printable_name(options.folder)} can be used")
        _show(lists, classes, name, len(index))
        if _is_album(options):
            albums.show_unusable(index.unusable())
    if options.out:
        rows = {
            title: [{"path": _where(photo), "score": score} for photo, score in each] for title, each in lists.items()
        }
        atomic_write_json(options.out, {**rows, "classes": dict(classes)})
        print(f"written: {options.out}")


def _default(flag):
    return f"default: {str(_DEFAULTS[flag]).lower()}"


def _check_used(options):
    """Refuses what has no part in what is asked for."""
    of_page, for_page = "the page, which is served without PHOTO and --class", ("host", "port", "browser", "photos")
    by_photo = ("precision", "expand")
    if options.photo is not None:
        refused = {of_page: for_page}
    elif options["class"] is not None:
        refused = {of_page: for_page, "PHOTO": by_photo}
    else:
        refused = {"PHOTO": by_photo, "PHOTO or --class": ("k", "out")}
    for what, flags in refused.items():
        for flag in flags:
            if options[flag] is not None:
                raise UserError(f"--{flag} is for {what}")


def _index(options):
    """What is searched: a folder's index, as the folder is now, or a collection."""
    if not databases.is_collection(options.folder):
        folder = albums.existing(options.folder)
        if options["class"] is not None and not _is_album(options):
            raise UserError(f"--class is for folders of photos: {printable_name(folder)} is an index of shards")
        _check_photo(options)
        model = albums.loaded(options)
        _check_class(options, model)
        if options.photo is not None:
            from mg_keras.search import thresholds

            thresholds.check(model.thresholds, options.precision)
        return albums.index_of(folder, model, options)
    from mg_keras.search.collection import CollectionIndex

    with _collection(options) as collection:
        _check_photo(options)
        return CollectionIndex(collection, albums.loaded(options), options.resolution)


def _check_photo(options):
    """What is looked for is looked at before an album is described, which may take hours."""
    if options.photo is not None:
        from mg_keras.search.describing import looked_at

        looked_at(options.photo)


def _is_album(options):
    """Whether photos themselves are searched: no collection, and no index of shards."""
    from mg_keras.search.sharded import is_sharded

    return not databases.is_collection(options.folder) and not is_sharded(albums.existing(options.folder))


def _check_class(options, model):
    """As `_check_photo`."""
    from mg_keras.search.index import classes_called

    if options["class"] is not None:
        classes_called(options["class"], model.class_names, options.model or "the model in the package")


@contextlib.contextmanager
def _collection(options):
    """A collection, which stays open unless the block raises."""
    with contextlib.ExitStack() as opened:
        # what is away, or none, is told before seconds are spent on a model
        collection = opened.enter_context(databases.open_collection(options.folder, create=False))
        from mg_keras.search.collection import check_pushed

        check_pushed(collection)
        yield collection
        opened.pop_all()


def _check_for_collection(options):
    """Refuses what only a folder has."""
    if options["class"] is not None:
        raise UserError(f"--class is for folders: {options.folder} is a collection")
    if options.photo is None and options.photos is None:
        raise UserError(
            f"{options.folder} is a collection: give a PHOTO, or --photos for a page of those below a folder"
        )
    for flag, given in {"--index": options.index, "--recursive": not options.recursive}.items():
        if given:
            raise UserError(f"{flag} is for folders: {options.folder} is a collection")


def _show(lists, classes, name, count):
    """The lists, a line a photo."""
    if classes:
        print("the photo: " + ", ".join(f"{each} {100 * share:.0f} %" for each, share in classes[:3]))
    kind = f"the same kind, {classes[0][0]}" if classes else "the most similar others"
    titles = {"copies": "copies", "instances": "the same object or place", "kind": kind, "class": name}
    for title, found in lists.items():
        print(f"{titles[title]}:" if found else f"{titles[title]}: none")
        for photo, score in found:
            shown = f"{100 * score:5.1f} %" if title == "class" else f"{score:.3f}"
            print(f"  {shown}  {_where(photo)}")
    print(f"{count:,} photos searched")


def _where(photo):
    # an address in a collection is no path
    return printable_name(photo.name if "://" in photo.name else photo.path)


def _serve(folder: Path, options: Any):
    """The page, until SIGINT or SIGTERM."""
    try:
        from mg_keras.search.album import Album
        from mg_keras.search.http_api import SearchServer, is_loopback
    except ModuleNotFoundError as error:
        raise UserError(
            f'{error}: pip install "mg-keras[serving]" (in a checkout: -e ".[serving]") brings what the page needs'
        ) from error
    if options.photos:
        from mg_keras.search.collection import CollectionAlbum

        with _collection(options) as collection:
            album = CollectionAlbum(folder, albums.loaded(options), collection, options.resolution)
    else:
        model = albums.loaded(options)
        path = albums.place(folder, model, options)
        album = Album(folder, model, path, options.recursive, options.resolution)
    token = None if is_loopback(options.host) else secrets.token_urlsafe(24)
    try:
        server = SearchServer(album, options.host, options.port, token)
    except OSError as error:
        raise UserError(
            f"{options.host}:{options.port} can't be listened on: {error.strerror or error}; --port 0 takes a free one"
        ) from error
    stopped = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stopped.set())
    server.start()
    album.update()
    print(f"{printable_name(options.folder if options.photos else folder)}: {server.url}")
    if token:
        print("Whoever has this address sees the photos; it is not encrypted.")
    print("Ctrl-C stops it.", flush=True)
    if options.browser and token is None and _has_display():
        webbrowser.open(server.url)
    stopped.wait()
    server.stop()
    album.stop()


def _has_display():
    return sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())
