"""Makes the sets of photos that the model in the package was trained on and is measured on, from public ones.

    python -m benchmarks.photo_sets --out SETS --caltech101 FOLDER --many FOLDER --imagenette FOLDER \\
        --imagewoof FOLDER --grocery FOLDER --cars FOLDER

* `train`: Caltech-101, the photos of many kinds, the training parts of Imagenette, Imagewoof and Grocery Store, and
  those of Stanford Cars; `mixed`: 2 400 of them, which whitenings are fitted on;
* `held_out`: 700 photos of Imagenette's and 567 of Imagewoof's validation part, 500 of Grocery Store's test part;
  `objects`: 120 planar objects, 60 product pictures of Grocery Store and 60 other photos of those parts: the object and
  four views of it;
* `kept_aside`, for thresholds: 700 other photos of those parts; `objects_kept_aside`: 81 objects, the other 21 product
  pictures and 60 more photos.

What is measured on is not trained on, and no photo is in two of these sets: a view of an object could not be told to
show it where the photo is among the others, too. `--imagenette` and `--imagewoof` hold `train/` and `val/`;
`--grocery` `dataset/`, `--cars` `cars_train/`, as distributed. Photos are linked, views are drawn: an object with
strong perspective on a cluttered ground (again other photos of those parts, cut up), in other light, with a
reflection, noise, blur and JPEG's losses. Everything is drawn from `--seed`.
"""

import io
import itertools
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageFilter, ImageOps

from benchmarks.arguments import benchmark_parser
from benchmarks.describers import opened, photo_files
from mg_keras.errors import UserError
from mg_keras.files import atomic_path
from mg_keras.programs.common import run_program
from mg_keras.progress import Progress

# pixels of a view's sides
_VIEW = (480, 360)
_VIEWS = 4
# as hard as photographs: SSCD's distilled MobileNet finds about as many as it finds of 400 photos of DVD covers, 60 %;
# degrees, an object's in the plane of the picture and out of it; its size, of the view; pieces that lie about
_TURN, _TILT, _SIZE, _PIECES = 20, (5, 30), (0.7, 0.97), (2, 5)
# factors of all light and of each channel; deviations of the blur, in pixels, and of the noise, in grey levels
_EXPOSURE, _TINT, _BLUR, _NOISE, _QUALITY = (0.7, 1.2), (0.92, 1.08), (0.3, 1.0), (1, 6), (50, 92)
_TRAIN = {
    "caltech101": ("caltech101", ""),
    "many": ("many", ""),
    "imagenette": ("imagenette", "train"),
    "imagewoof": ("imagewoof", "train"),
    "grocery": ("grocery", "dataset/train"),
    "cars": ("cars", "cars_train"),
}
_MEASURED = {
    "imagenette": ("imagenette", "val"),
    "imagewoof": ("imagewoof", "val"),
    "grocery": ("grocery", "dataset/test"),
}
_MIXED = {"caltech101": 600, "many": 967, "imagenette": 300, "imagewoof": 200, "grocery": 133, "cars": 200}
# of what is measured on: which part of it is in which set
_PARTS = {
    "held_out": {"imagenette": 700, "imagewoof": 567, "grocery": 500},
    "kept_aside": {"imagenette": 300, "imagewoof": 200, "grocery": 200},
    "objects": {"imagenette": 30, "imagewoof": 20, "grocery": 10},
    "objects_kept_aside": {"imagenette": 30, "imagewoof": 20, "grocery": 10},
    "grounds": {"imagenette": 200, "imagewoof": 100, "grocery": 200},
}
_PRODUCTS = "dataset/iconic-images-and-descriptions"
# of them in `objects`
_PRODUCTS_SHOWN = 60


def main():
    """Arguments, and the folders."""
    parser = benchmark_parser("photo_sets", __doc__)
    parser.add_argument("--out", type=Path, required=True)
    for name in _TRAIN:
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.out.exists():
        raise UserError(f"{options.out} is there already: give a new folder")
    with atomic_path(options.out) as partial:
        make(partial, options)
    print(f"written: {options.out}")


def make(out, options):
    """All sets, in a new folder."""
    roots = {name: getattr(options, name) for name in _TRAIN}
    train = {name: photo_files(roots[root] / below) for name, (root, below) in _TRAIN.items()}
    link_all(out / "train", train, roots)
    rng = np.random.default_rng(options.seed)
    link_all(out / "mixed", {name: draw(rng, files, _MIXED[name], name) for name, files in train.items()}, roots)
    parts = {name: {} for name in _PARTS}
    for name, (root, below) in _MEASURED.items():
        sizes = [counts[name] for counts in _PARTS.values()]
        drawn = iter(draw(rng, photo_files(roots[root] / below), sum(sizes), name))
        for part, size in zip(parts.values(), sizes, strict=True):
            part[name] = list(itertools.islice(drawn, size))
    for name in ("held_out", "kept_aside"):
        link_all(out / name, parts[name], roots)
    products = photo_files(roots["grocery"] / _PRODUCTS)
    products = draw(rng, products, len(products), "product pictures")
    if len(products) <= _PRODUCTS_SHOWN:
        raise UserError(f"--grocery has {len(products)} product pictures, more than {_PRODUCTS_SHOWN} are needed")
    for name, pictures in (("objects", products[:_PRODUCTS_SHOWN]), ("objects_kept_aside", products[_PRODUCTS_SHOWN:])):
        draw_objects(out / name, pictures + all_of(parts[name]), all_of(parts["grounds"]), options.seed)


def all_of(part):
    """The files of all that a part is of."""
    return [file for files in part.values() for file in files]


def draw(rng, files, count, name):
    """`count` of the files, in a random order."""
    if len(files) < count:
        raise UserError(f"{name} has {len(files)} photos, {count} are needed")
    return [files[row] for row in rng.permutation(len(files))[:count]]


def link_all(folder, parts, roots):
    """A folder of links to photos, a subfolder a part, below which they lie as they did."""
    for name, files in parts.items():
        for file in files:
            link = folder / name / file.relative_to(roots[name])
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())


def draw_objects(folder, objects, grounds, seed):
    """A subfolder for each object: `0.jpg`, the object, and its views, `1.jpg` and so on."""
    # each set's views are drawn apart; `objects` came first, and stays what models were measured on
    key = (seed,) if folder.name == "objects" else (seed, zlib.crc32(folder.name.encode()))
    with Progress(folder.name, len(objects), "objects") as progress:
        for number, file in enumerate(objects):
            place = folder / f"{number:03}"
            place.mkdir(parents=True)
            picture = ImageOps.contain(opened(file), _VIEW)
            picture.save(place / "0.jpg", quality=92)
            for version in range(1, _VIEWS + 1):
                rng = np.random.default_rng((*key, number, version))
                (place / f"{version}.jpg").write_bytes(view(picture, grounds, rng))
            progress.advance()


def view(picture, grounds, rng):
    """A photo of a planar object, JPEG bytes: the object on a cluttered ground, seen from aside in other light."""
    ground = clutter(grounds, rng)
    seen, mask = from_aside(np.float32(picture), rng)
    # light falls off across the object, and something shines in it
    seen = seen * light(rng)[..., None] + 255 * reflection(rng)[..., None]
    scene = ground * (1 - mask[..., None]) + seen * mask[..., None]
    scene = scene * rng.uniform(*_EXPOSURE) * rng.uniform(*_TINT, 3)
    scene = cv2.GaussianBlur(scene, (0, 0), rng.uniform(*_BLUR))
    scene = scene + rng.normal(0, rng.uniform(*_NOISE), scene.shape)
    found = io.BytesIO()
    Image.fromarray(np.uint8(np.clip(scene, 0, 255))).save(found, "JPEG", quality=int(rng.integers(*_QUALITY)))
    return found.getvalue()


def clutter(grounds, rng):
    """float32 [h, w, 3]: a photo, with pieces of others lying on it."""
    width, height = _VIEW
    ground = ImageOps.fit(opened(grounds[rng.integers(len(grounds))]), _VIEW)
    for _ in range(rng.integers(*_PIECES)):
        piece = opened(grounds[rng.integers(len(grounds))])
        side = int(rng.integers(60, 160))
        piece = ImageOps.fit(piece, (side, side)).rotate(rng.uniform(0, 360), expand=True, fillcolor=(90, 90, 90))
        ground.paste(piece, (int(rng.integers(-40, width - 40)), int(rng.integers(-40, height - 40))))
    return np.float32(ground.filter(ImageFilter.GaussianBlur(1)))


def from_aside(pixels, rng):
    """(float32 [h, w, 3], mask float32 [h, w]): a picture turned, tilted and smaller, somewhere in a view."""
    width, height = _VIEW
    rows, columns = pixels.shape[:2]
    corners = np.float64([(0, 0), (columns, 0), (columns, rows), (0, rows)])
    # the object as a plane in space: turned in it, then tilted about both axes, and looked at from close by
    centred = (corners - corners.mean(axis=0)) / max(rows, columns)
    angle = np.deg2rad(rng.uniform(-_TURN, _TURN))
    plane = np.c_[centred @ rotation(angle).T, np.zeros(4)]
    for axes in ((0, 2), (1, 2)):
        tilt = np.deg2rad(rng.uniform(*_TILT)) * rng.choice([-1, 1])
        plane[:, axes] = plane[:, axes] @ rotation(tilt).T
    projected = plane[:, :2] / (1 + 0.55 * plane[:, 2:])
    extent = np.ptp(projected, axis=0)
    scale = rng.uniform(*_SIZE) * min(width / extent[0], height / extent[1])
    projected = (projected - projected.min(axis=0)) * scale
    room = np.array([width, height]) - extent * scale
    moved = projected + rng.uniform(0, 1, 2) * room
    matrix = cv2.getPerspectiveTransform(np.float32(corners), np.float32(moved))
    seen = cv2.warpPerspective(pixels, matrix, _VIEW, flags=cv2.INTER_AREA)
    mask = cv2.warpPerspective(np.ones((rows, columns), np.float32), matrix, _VIEW)
    return seen, mask


def rotation(angle):
    """[2, 2]."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def light(rng):
    """float32 [h, w]: how bright it is, from one side to the other."""
    return 1 + rng.uniform(0.1, 0.45) * along(rng.uniform(0, 2 * np.pi))


def reflection(rng):
    """float32 [h, w], 0 to 1: a bright band."""
    place, strength, width = rng.uniform(-0.6, 0.6), rng.uniform(0, 0.5), rng.uniform(0.05, 0.2)
    return strength * np.exp(-(((along(rng.uniform(0, 2 * np.pi)) - place) / width) ** 2))


def along(angle):
    """float32 [h, w]: -1 to 1 across the view in a direction."""
    width, height = _VIEW
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    across = np.cos(angle) * x + np.sin(angle) * y
    return np.float32(across / np.abs(across).max())


if __name__ == "__main__":
    run_program(main)
