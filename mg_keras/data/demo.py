"""The demo set: photo-like pictures of textured objects, drawn by code, with class, instance and copy known.

A class is a silhouette (ring, key, fish, ...). An instance is one object of it, with its own proportions, colours,
texture and marks. A view is one picture of that object: its own rotation, scale, position, light, partial cover and
background. No colour and no texture belongs to a class, so only shape gives the class away; a background belongs to
one picture alone, so that a crop of it can still be traced to its picture.

`write_demo` writes the set as a folder of photos, so that everything after it is the code that reads real photos.
"""

import functools
import json
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from mg_keras.errors import UserError

# A change to any drawing must raise this number: folders written before it are then refused, not taken for the new set.
VERSION = 3
_MIN_RESOLUTION, _MAX_RESOLUTION = 32, 512
# The first numbers of the instances in val/ and in unlabelled/. They are fixed, so that a larger training set is a
# superset of a smaller one, beside the same validation and unlabelled photos.
_FIRST_VAL_INSTANCE = 50_000
_FIRST_SCENE_INSTANCE = 100_000
# Each kind of picture draws its random numbers from its own stream.
_OBJECT_STREAM, _VIEW_STREAM, _SCENE_STREAM = 1, 2, 3
# JPEG as most photos are: at 128 px it is a quarter of the PNG and eight times as fast to write.
_JPEG_QUALITY = 92
# Much of the drawing holds the interpreter's lock: two threads are 1.25 times as fast as one, on two cores.
_THREADS = 2


def _generator(seed, *key):
    return np.random.default_rng([seed, *key])


# --- Silhouettes ---
#
# A silhouette is a list of (region, polygon), painted in order. A polygon is an [n, 2] array of (x, y) in [-1, 1], x to
# the right, y down. "body" and "accent" are opaque, with a texture each; "hole" is see-through again.


def _ellipse(x, y, radius_x, radius_y=None, arc=(0.0, 2 * np.pi)):
    angle = np.linspace(*arc, 60)
    return np.stack([x + radius_x * np.cos(angle), y + (radius_y or radius_x) * np.sin(angle)], axis=1)


def _box(left, top, right, bottom):
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])


def _stroke(points, width):
    """The polygon of a line through `points` [n, 2], `width` wide (a number, or one for each point)."""
    points = np.asarray(points, float)
    along = np.gradient(points, axis=0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    side = across * np.broadcast_to(width, len(points))[:, None] / 2
    return np.concatenate([points + side, (points - side)[::-1]])


def _spokes(count, *radii, turn=-np.pi / 2):
    """A closed outline that goes through `radii` in turn, `count` times around, at equal angles."""
    radius = np.tile(radii, count)
    angle = turn + 2 * np.pi * np.arange(len(radius)) / len(radius)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _arrow(rng):
    neck, half_head, half_shaft = rng.uniform(-0.05, 0.25), rng.uniform(0.55, 0.75), rng.uniform(0.16, 0.26)
    upper = [(-0.92, -half_shaft), (neck, -half_shaft), (neck, -half_head)]
    lower = [(x, -y) for x, y in reversed(upper)]
    return [("body", np.array([*upper, (0.92, 0.0), *lower]))]


def _bolt(rng):
    stretch = rng.uniform(0.85, 1.2)
    points = [(0.1, -0.92), (-0.52, 0.14), (-0.1, 0.14), (-0.34, 0.92), (0.56, -0.26), (0.12, -0.26), (0.52, -0.92)]
    return [("body", np.array(points) * [stretch, 1.0])]


def _bottle(rng):
    half, neck, shoulder = rng.uniform(0.34, 0.46), rng.uniform(0.12, 0.17), rng.uniform(-0.35, -0.1)
    right = [(neck, -0.7), (neck, shoulder - 0.25), (half, shoulder + 0.1), (half, 0.85), (half - 0.08, 0.93)]
    left = [(-x, y) for x, y in reversed(right)]
    top = rng.uniform(0.1, 0.25)
    return [
        ("body", np.array(right + left)),
        ("accent", _box(-neck - 0.05, -0.93, neck + 0.05, -0.7)),
        ("accent", _box(-half, top, half, top + rng.uniform(0.25, 0.45))),
    ]


def _crescent(rng):
    shift, radius = rng.uniform(0.38, 0.5), rng.uniform(0.66, 0.76)
    return [("body", _ellipse(0, 0, 0.9)), ("hole", _ellipse(shift, 0, radius))]


def _cross(rng):
    half, reach = rng.uniform(0.2, 0.32), rng.uniform(0.75, 0.9)
    return [("body", _box(-half, -0.9, half, 0.9)), ("body", _box(-reach, -half, reach, half))]


def _fish(rng):
    height, tail = rng.uniform(0.4, 0.55), rng.uniform(0.4, 0.55)
    return [
        ("accent", np.array([(-0.3, -height * 0.6), (0.1, -height - 0.3), (0.3, -height * 0.5)])),
        ("accent", np.array([(0.3, 0.0), (0.93, -tail), (0.75, 0.0), (0.93, tail)])),
        ("body", _ellipse(-0.2, 0, 0.72, height)),
        ("accent", _stroke(_ellipse(-0.62, 0, 0.3, height, (-0.9, 0.9)), 0.08)),
        ("hole", _ellipse(-0.62, -height * 0.25, 0.09)),
    ]


def _flower(rng):
    count, reach = rng.integers(5, 8), rng.uniform(0.48, 0.53)
    petal = _ellipse(reach, 0, 0.4, reach * np.sin(np.pi / count) * rng.uniform(1.0, 1.1))
    petals = []
    for angle in rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(count) / count:
        cos, sin = np.cos(angle), np.sin(angle)
        petals.append(("body", petal @ np.array([(cos, sin), (-sin, cos)])))
    return [*petals, ("accent", _ellipse(0, 0, rng.uniform(0.26, 0.36)))]


def _gear(rng):
    root = rng.uniform(0.64, 0.7)
    return [
        ("body", _spokes(rng.integers(8, 11), root, 0.92, 0.92, root)),
        ("hole", _ellipse(0, 0, rng.uniform(0.2, 0.32))),
    ]


def _heart(rng):
    t = np.linspace(0, 2 * np.pi, 80)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return [("body", np.stack([x * rng.uniform(0.048, 0.056), (y - 2.5) * rng.uniform(0.053, 0.06)], axis=1))]


def _house(rng):
    half, eaves = rng.uniform(0.58, 0.7), rng.uniform(-0.25, -0.05)
    door = rng.uniform(-0.4, 0.4) * half
    window = -np.sign(door) * half * 0.5
    chimney = rng.choice([-0.45, 0.45])
    return [
        ("body", _box(chimney - 0.11, -0.85, chimney + 0.11, eaves)),
        ("body", _box(-half, eaves - 0.02, half, 0.88)),
        ("accent", np.array([(-half - 0.22, eaves), (0.0, -0.92), (half + 0.22, eaves)])),
        ("hole", _box(door - 0.14, 0.32, door + 0.14, 0.9)),
        ("hole", _box(window - 0.15, 0.1, window + 0.15, 0.42)),
    ]


def _key(rng):
    bow, shaft = rng.uniform(0.36, 0.44), rng.uniform(0.1, 0.14)
    parts = [("body", _ellipse(0.92 - bow, 0, bow)), ("body", _box(-0.92, -shaft, 0.5, shaft))]
    for k in range(rng.integers(2, 4)):
        left = -0.92 + 0.27 * k
        parts.append(("body", _box(left, 0, left + 0.15, rng.uniform(0.36, 0.48))))
    return [*parts, ("hole", _ellipse(0.92 - bow, 0, bow * rng.uniform(0.42, 0.55)))]


def _ladder(rng):
    half, rail, count = rng.uniform(0.36, 0.5), rng.uniform(0.13, 0.18), rng.integers(4, 6)
    rungs = np.linspace(-0.66, 0.66, count)
    parts = [("accent", _box(-half, y - 0.075, half, y + 0.075)) for y in rungs]
    return [*parts, *(("body", _box(x - rail / 2, -0.92, x + rail / 2, 0.92)) for x in (-half, half))]


def _leaf(rng):
    t = np.linspace(-0.92, 0.55, 40)
    half = rng.uniform(0.42, 0.55) * np.sin(np.pi * ((t + 0.92) / 1.47) ** rng.uniform(1.0, 1.3)) + 1e-3
    veins = [("accent", _stroke([(0, -0.75), (0, 0.55)], [0.03, 0.12]))]
    for y in (-0.3, 0.0, 0.3):
        reach = np.interp(y - 0.2, t, half) * 0.85
        veins += [("accent", _stroke([(0, y + 0.05), (side * reach, y - 0.2)], 0.06)) for side in (-1, 1)]
    stem = _stroke([(0, 0.45), (0.02, 0.7), (rng.uniform(-0.15, 0.15), 0.93)], 0.12)
    return [("accent", stem), ("body", _stroke(np.stack([0 * t, t], axis=1), 2 * half)), *veins]


def _mug(rng):
    height, half, taper = rng.uniform(0.6, 0.75), rng.uniform(0.48, 0.56), rng.uniform(0.0, 0.08)
    handle, y = rng.uniform(0.34, 0.4), rng.uniform(-0.1, 0.05)
    x = half - 0.3
    band = rng.uniform(-0.2, 0.2)
    body = np.array([(x - 2 * half, -height), (x, -height), (x - taper, height), (x - 2 * half + taper, height)])
    return [
        ("body", _ellipse(x + 0.08, y, handle * 1.25, handle * 1.1)),
        ("hole", _ellipse(x + 0.08, y, handle * 0.75, handle * 0.62)),
        ("body", body),
        ("accent", _box(x - 2 * half + taper, band - 0.1, x - taper, band + 0.1)),
        ("accent", _ellipse(x - half, -height, half, 0.14)),
    ]


def _mushroom(rng):
    base, half = rng.uniform(-0.05, 0.1), rng.uniform(0.8, 0.92)
    rise = base + rng.uniform(0.84, 0.92)
    stem = rng.uniform(0.2, 0.3)
    cap = _ellipse(0, base, half, rise, (np.pi, 2 * np.pi))
    spots = [(x, base - y * rise, r) for x, y, r in ((-0.42, 0.25, 0.12), (0.05, 0.6, 0.15), (0.42, 0.3, 0.13))]
    return [
        ("accent", np.array([(-stem, base), (stem, base), (stem * 1.3, 0.92), (-stem * 1.3, 0.92)])),
        ("body", np.concatenate([cap, _ellipse(0, base, half, 0.12, (0, np.pi))])),
        *(("accent", _ellipse(x, y, r)) for x, y, r in spots),
    ]


def _ring(rng):
    return [("body", _ellipse(0, 0, 0.88, rng.uniform(0.8, 0.9))), ("hole", _ellipse(0, 0, rng.uniform(0.46, 0.6)))]


def _spiral(rng):
    turns, width = rng.uniform(2.1, 2.5), rng.uniform(0.17, 0.21)
    t = np.linspace(0.08, 1, 160)
    angle = rng.uniform(0, 2 * np.pi) + 2 * np.pi * turns * t
    return [("body", _stroke(np.stack([0.84 * t * np.cos(angle), 0.84 * t * np.sin(angle)], axis=1), width))]


def _star(rng):
    return [("body", _spokes(5, 0.95, rng.uniform(0.36, 0.46)))]


def _tree(rng):
    half = rng.uniform(0.55, 0.7)
    parts = [("accent", _box(-0.13, 0.5, 0.13, 0.93))]
    tiers = ((-0.93, -0.3, 0.6), (-0.6, 0.15, 0.8), (-0.2, 0.62, 1.0))
    return parts + [("body", np.array([(0, top), (half * w, foot), (-half * w, foot)])) for top, foot, w in tiers]


def _umbrella(rng):
    foot, half = rng.uniform(0.0, 0.12), 0.92
    scallops, width = rng.integers(3, 5), rng.uniform(0.11, 0.14)
    hook = np.concatenate([[(0.0, -0.9), (0.0, 0.72)], _ellipse(0.18, 0.72, 0.18, arc=(np.pi, 0.2))[1:]])
    dome = _ellipse(0, foot, half, foot + 0.8, (np.pi, 2 * np.pi))
    step = 2 * half / scallops
    bites = [("hole", _ellipse(-half + step * (k + 0.5), foot, step * 0.46, 0.2)) for k in range(scallops)]
    return [("body", dome), *bites, ("accent", _stroke(hook, width))]


_SILHOUETTES = {
    "arrow": _arrow,
    "bolt": _bolt,
    "bottle": _bottle,
    "crescent": _crescent,
    "cross": _cross,
    "fish": _fish,
    "flower": _flower,
    "gear": _gear,
    "heart": _heart,
    "house": _house,
    "key": _key,
    "ladder": _ladder,
    "leaf": _leaf,
    "mug": _mug,
    "mushroom": _mushroom,
    "ring": _ring,
    "spiral": _spiral,
    "star": _star,
    "tree": _tree,
    "umbrella": _umbrella,
}
CLASS_NAMES = tuple(_SILHOUETTES)
_FILENAME = re.compile(rf"({'|'.join(CLASS_NAMES)})-(\d{{6}})-(\d{{2}})\.jpg")


# --- Textures ---
#
# Every texture is a function on the unit square, sampled on a grid of any size, so that a scene is the same at any
# resolution. Pillow does the heavy work: it is compiled, and releases the interpreter's lock.


def _noise(rng, size, cells):
    """Smooth colour noise: random colours on a `cells` x `cells` grid, interpolated to an RGB image of `size` px."""
    grid = (rng.random((cells, cells, 3)) * 256).astype(np.uint8)
    return Image.fromarray(grid).resize((size, size), Image.Resampling.BILINEAR)


def _add_grain(rng, image, amount):
    """Mix noise of three scales, from a sixth of the side to a fiftieth, into an RGB image."""
    coarse, middle, fine = (_noise(rng, 50, cells) for cells in (6, 20, 50))
    grain = Image.blend(coarse, Image.blend(middle, fine, 0.5), 0.6)
    grain = Image.blend(grain.convert("L").convert("RGB"), grain, rng.uniform(0.1, 0.8))
    return Image.blend(image, grain.resize(image.size, Image.Resampling.BILINEAR), amount)


def _colours(rng, lightness, chroma, spread=np.pi, hue=None):
    """RGB rows in 0-255 with means `lightness` [n] in 0-1 (but for clipping), hues within `spread` of one (or any)."""
    hue = rng.uniform(0, 2 * np.pi) if hue is None else hue
    hue = hue + rng.uniform(-spread, spread, (len(lightness), 1))
    rgb = np.asarray(lightness)[:, None] + chroma * np.cos(hue + 2 * np.pi / 3 * np.arange(3))
    return np.clip(rgb, 0, 1) * 255


def _pattern(rng, size):
    """A random pattern, float32 [size, size] in [0, 1]: stripes, waves, checks, dots, rings, weave or marble."""
    x = np.linspace(-1, 1, 2 * size + 1, dtype=np.float32)[1::2]
    y = x[:, None]
    angle, frequency = rng.uniform(0, np.pi), np.pi * rng.uniform(2.0, 5.5)
    cos, sin = np.float32(frequency * np.cos(angle)), np.float32(frequency * np.sin(angle))
    phase = rng.uniform(0, 2 * np.pi, 2).astype(np.float32)
    centre = rng.uniform(-0.6, 0.6, 2).astype(np.float32)
    u, v = (cos * x + phase[0]) + sin * y, (phase[1] - sin * x) + cos * y
    kind = rng.integers(7)
    if kind == 0:
        value = np.sin(u)
    elif kind == 1:
        value = np.sin(u + 1.5 * np.sin(v))
    elif kind == 2:
        value = 2 * np.sin(u) * np.sin(v)
    elif kind == 3:
        value = np.cos(u) + np.cos(v) - 0.7
    elif kind == 4:
        value = np.sin(np.float32(frequency) * np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2))
    elif kind == 5:
        value = np.maximum(np.sin(u), np.sin(v)) - 0.4
    else:
        value = np.sin(np.asarray(_noise(rng, size, 7).getchannel(0), np.float32) / 25 + 0.4 * u)
    return np.clip(0.5 + rng.uniform(0.5, 2.0) * value, 0, 1)


def _texture(rng, size, lightness, contrast, palette=None):
    """An RGB image of `size` px: a pattern in four colours around `lightness`, of a (hue, chroma) or of any hues."""
    stops = lightness + contrast * rng.permutation([-1.0, -0.3, 0.3, 1.0])
    if palette is None:
        colours = _colours(rng, stops, rng.uniform(0.06, 0.24), rng.uniform(0.3, np.pi))
    else:
        colours = _colours(rng, stops, palette[1], 0.1, palette[0])
    ramp = np.stack([np.interp(np.arange(256), [0, 85, 170, 255], colours[:, c]) for c in range(3)], axis=1)
    image = Image.fromarray((_pattern(rng, size) * 255).astype(np.uint8))
    image.putpalette(ramp.astype(np.uint8).tobytes())
    return image.convert("RGB")


# --- Objects and scenes ---

# Tables from a smooth 0-255 image to the opacity of what is painted through it.
_RIM = [min(255, max(0, 3 * (215 - value))) for value in range(256)]
_SHADOW = [value // 2 for value in range(256)]
_BORDER = [min(255, max(0, 8 * (value - 112))) for value in range(256)]


def _mask(size, polygons):
    """An antialiased L image of `size` px: (value, polygon) pairs painted in order."""
    image = Image.new("L", (4 * size, 4 * size))
    draw = ImageDraw.Draw(image)
    for value, polygon in polygons:
        draw.polygon([tuple(point) for point in ((polygon + 1) * 2 * size).tolist()], fill=value)
    return image.reduce(4)


@functools.lru_cache(maxsize=16)  # the views of an instance are drawn one after the other
def _object(class_index, instance, size, seed):
    """One instance upright, an RGBA image of `size` px."""
    rng = _generator(seed, _OBJECT_STREAM, class_index, instance, 0)
    parts = _SILHOUETTES[CLASS_NAMES[class_index]](rng)
    # Bodies are light or dark and backgrounds between the two, so that an object stands out of any of them, without its
    # background knowing anything about it.
    light = rng.random() < 0.5
    body = _add_grain(rng, _texture(rng, size, *((0.8, 0.13) if light else (0.2, 0.1))), 0.12)
    accent = _texture(rng, size, *((0.22, 0.05) if light else (0.78, 0.05)))
    mark, rim = _colours(rng, rng.uniform(0.1, 0.9, 1), 0.3)[0], _colours(rng, [0.06 if light else 0.94], 0.05)[0]
    marks = []
    for _ in range(rng.integers(3, 7)):
        spot = _spokes(rng.integers(3, 6), *rng.uniform(0.05, 0.15, 2), turn=rng.uniform(0, np.pi))
        marks.append((255, spot + rng.uniform(-0.75, 0.75, 2)))

    body.paste(tuple(mark.astype(int)), mask=_mask(size, marks))
    body.paste(accent, mask=_mask(size, [(255 * (region == "accent"), polygon) for region, polygon in parts]))
    alpha = _mask(size, [(255 * (region != "hole"), polygon) for region, polygon in parts])
    # A rim along the inner side of the outline: where the blurred silhouette falls off.
    soft = alpha.filter(ImageFilter.GaussianBlur(0.015 * size))
    body.paste(tuple(rim.astype(int)), mask=soft.point(_RIM))
    body.putalpha(alpha)
    return body


def _place(image, size, linear, centre):
    """`image`, a square [-1, 1]², moved by q -> linear q + centre into a scene of `size` px that is [0, 1]²."""
    inverse = np.linalg.inv(linear)
    half = image.width / 2
    # Pillow wants the map from pixels of the scene to pixels of the image.
    offset = half - half * inverse @ centre
    matrix = half * inverse / size
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    return image.transform((size, size), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def _add_object(rng, scene, item, scale):
    """Paint `item` into `scene` with a random pose and a shadow; return the centre, of [0, 1]²."""
    size = scene.width
    turn, shear, squeeze = np.deg2rad(rng.uniform(-35, 35)), rng.uniform(-0.15, 0.15), rng.uniform(0.88, 1.12)
    rotation = np.array([(np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))])
    linear = scale / 2 * rotation @ np.array([(squeeze, shear), (0, 1 / squeeze)])
    centre = 0.5 + rng.uniform(-0.5, 0.5, 2) * (1 - scale)
    soft = item.getchannel("A").resize((24, 24), Image.Resampling.BOX)
    shadow = _place(soft, 32, linear * 1.03, centre + rng.uniform(-0.03, 0.03, 2)).point(_SHADOW)
    scene.paste((0, 0, 0), mask=shadow.resize(scene.size, Image.Resampling.BICUBIC))
    placed = _place(item, size, linear, centre)
    scene.paste(placed, mask=placed)
    return centre


def _add_cover(rng, scene, centre, scale):
    """Cover a part of the object at `centre`, `scale` wide, with a polygon of another texture."""
    direction, distance = rng.uniform(0, 2 * np.pi), scale * rng.uniform(0.34, 0.5)
    outline = _spokes(rng.integers(3, 7), scale * rng.uniform(0.14, 0.26), turn=rng.uniform(0, np.pi))
    middle = centre + distance * np.array([np.cos(direction), np.sin(direction)])
    texture = _texture(rng, scene.width, rng.uniform(0.2, 0.8), 0.1)
    scene.paste(texture, mask=_mask(scene.width, [(255, 2 * (middle + outline) - 1)]))


def _background(rng, size, hue):
    """Two textures of hues about `hue` that meet in a wavy border, with grain."""
    palette = hue, rng.uniform(0.06, 0.3)
    lightness = rng.uniform(0.4, 0.6)
    first, second = (
        _texture(rng, size, lightness + rng.uniform(-0.04, 0.04), rng.uniform(0.05, 0.14), palette) for _ in range(2)
    )
    border = _noise(rng, size, 4).getchannel(0).point(_BORDER)
    return _add_grain(rng, Image.composite(first, second, border), rng.uniform(0.15, 0.3))


def _expose(rng, scene, resolution, hue):
    """Reduce `scene` to `resolution` and light it: gain, a gradient, and light of `hue`. uint8 [R, R, 3]."""
    pixels = np.asarray(scene.reduce(scene.width // resolution), np.float32)
    x = np.linspace(-1, 1, 2 * resolution + 1, dtype=np.float32)[1::2]
    slope_x, slope_y = rng.uniform(-0.2, 0.2, 2).astype(np.float32)
    tint = 1 + rng.uniform(0.0, 0.25) * np.cos(hue + 2 * np.pi / 3 * np.arange(3))
    gain = (rng.uniform(0.75, 1.15) * tint).astype(np.float32)
    light = 1 + slope_x * x + slope_y * x[:, None]
    return np.clip(pixels * light[..., None] * gain + 0.5, 0, 255).astype(np.uint8)


def _grid_size(resolution):
    """The side of the grid a scene is drawn on before it is reduced: a multiple of `resolution`, at least 128 px."""
    return resolution * -(-128 // resolution)


def _check(value, name, low, high):
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise ValueError(f"{name} must be an integer from {low} to {high}, received {value!r}")


def draw_view(class_index: int, instance: int, view: int, resolution: int = 128, seed: int = 0) -> np.ndarray:
    """One picture of one object.

    The picture depends on the arguments alone: not on what was drawn before nor, rounding aside, on the machine.
    `resolution` changes the sampling, never the scene.

    Args:
        class_index: which silhouette, a row of `CLASS_NAMES`.
        instance: which object of that class, from 0 to 99 999. It fixes proportions, colours, texture and marks.
        view: which picture of that object, from 0 to 99. It fixes rotation (35 degrees either way), scale (the object
            takes about 45 to 75 % of the side), position, light, partial cover and background.
        resolution: side in pixels, 32 to 512.
        seed: which world; two seeds share no object.

    Returns:
        RGB, uint8 [resolution, resolution, 3].

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> draw_view(CLASS_NAMES.index("mug"), instance=3, view=0, resolution=64).shape
        (64, 64, 3)
    """
    _check(class_index, "class_index", 0, len(CLASS_NAMES) - 1)
    _check(instance, "instance", 0, _FIRST_SCENE_INSTANCE - 1)
    _check(view, "view", 0, 99)
    _check(resolution, "resolution", _MIN_RESOLUTION, _MAX_RESOLUTION)
    _check(seed, "seed", 0, 2**32 - 1)
    size = _grid_size(resolution)
    rng = _generator(seed, _VIEW_STREAM, class_index, instance, view)
    # one hue for background and light: any part of the picture, however small, can be traced back to it
    hue = rng.uniform(0, 2 * np.pi)
    scene = _background(rng, size, hue)
    scale = rng.uniform(0.62, 0.82)
    centre = _add_object(rng, scene, _object(class_index, instance, size * 3 // 4, seed), scale)
    if rng.random() < 0.6:
        _add_cover(rng, scene, centre, scale)
    return _expose(rng, scene, resolution, hue)


def _draw_scene(number, resolution, seed):
    """A picture for unlabelled/: two objects of any class that no labelled picture shows. uint8 [R, R, 3]."""
    size = _grid_size(resolution)
    rng = _generator(seed, _SCENE_STREAM, 0, number, 0)
    # one hue for background and light: any part of the picture, however small, can be traced back to it
    hue = rng.uniform(0, 2 * np.pi)
    scene = _background(rng, size, hue)
    for k in range(2):
        instance = _FIRST_SCENE_INSTANCE + 2 * number + k
        scale = rng.uniform(0.4, 0.7)
        _add_object(rng, scene, _object(int(rng.integers(len(CLASS_NAMES))), instance, size // 2, seed), scale)
    return _expose(rng, scene, resolution, hue)


# --- The folder ---


def instance_of(filename: str | os.PathLike) -> str:
    """The object that a labelled photo of the demo set shows.

    Args:
        filename: the photo's name or path, as `write_demo` wrote it.

    Returns:
        "<class>-<instance id>", the same for all views of the object and for no other photo.

    Raises:
        ValueError: the name is not that of a labelled photo of the demo set.

    Example:
        >>> instance_of("val/mug/mug-050003-01.jpg")
        'mug-050003'
    """
    match = _FILENAME.fullmatch(Path(filename).name)
    if not match:
        raise ValueError(f"{str(filename)!r} is no labelled photo of the demo set (<class>-<instance>-<view>.jpg)")
    return f"{match[1]}-{match[2]}"


def _write_instance(folder, class_index, instance, views, resolution, seed):
    name = CLASS_NAMES[class_index]
    for view in range(views):
        photo = Image.fromarray(draw_view(class_index, instance, view, resolution, seed))
        photo.save(folder / name / f"{name}-{instance:06}-{view:02}.jpg", quality=_JPEG_QUALITY)


def _write_scene(folder, number, resolution, seed):
    photo = Image.fromarray(_draw_scene(number, resolution, seed))
    photo.save(folder / f"scene-{number:06}.jpg", quality=_JPEG_QUALITY)


def _holds(folder, parameters):
    """Whether `folder` holds the set of `parameters`; a folder with anything else in it is refused."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{folder} exists and holds no demo set: name a new folder, or remove it") from None
    if found != parameters:
        raise UserError(f"{folder} holds another demo set, of {found}: name a new folder, or remove it")
    return True


def write_demo(
    folder: str | os.PathLike,
    resolution: int = 128,
    seed: int = 0,
    instances_per_class: int = 25,
    views_per_instance: int = 4,
    num_unlabelled: int = 1200,
) -> Path:
    """Write the demo set as a folder of JPEG photos.

    ```
    train/<class>/<class>-<instance>-<view>.jpg    `instances_per_class` objects of each class
    val/<class>/<class>-<instance>-<view>.jpg      other objects of the same classes, a third as many
    unlabelled/scene-<number>.jpg                  still other objects, two a photo: to fit whitening on
    demo.json                                      the arguments
    ```

    With the default of four views, the views of an object in val/ are a group in the manner of UKB.

    The folder appears whole or not at all. One that already holds the same set is left as it is.

    Args:
        folder: where to write.
        resolution: side of the photos in pixels, 32 to 512.
        seed: which world of objects and scenes, from 0.
        instances_per_class: objects of each class in train/, from 1 to 50 000.
        views_per_instance: photos of each object, from 1 to 100.
        num_unlabelled: photos in unlabelled/, from 0 to 100 000.

    Returns:
        `folder` as a `Path`.

    Raises:
        ValueError: an argument out of range.
        UserError: the folder holds something else, or cannot be written.
    """
    _check(resolution, "resolution", _MIN_RESOLUTION, _MAX_RESOLUTION)
    _check(seed, "seed", 0, 2**32 - 1)
    _check(instances_per_class, "instances_per_class", 1, _FIRST_VAL_INSTANCE)
    _check(views_per_instance, "views_per_instance", 1, 100)
    _check(num_unlabelled, "num_unlabelled", 0, 100_000)
    parameters = {
        "version": VERSION,
        "resolution": int(resolution),
        "seed": int(seed),
        "instances_per_class": int(instances_per_class),
        "views_per_instance": int(views_per_instance),
        "num_unlabelled": int(num_unlabelled),
    }
    folder = Path(folder)
    if _holds(folder, parameters):
        return folder
    val_instances = -(-instances_per_class // 3)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            whole = Path(temporary) / "whole"
            for split in ("train", "val"):
                for name in CLASS_NAMES:
                    (whole / split / name).mkdir(parents=True)
            (whole / "unlabelled").mkdir()
            jobs = [
                (_write_instance, whole / split, class_index, first + k, views_per_instance, resolution, seed)
                for split, first, count in (
                    ("train", 0, instances_per_class),
                    ("val", _FIRST_VAL_INSTANCE, val_instances),
                )
                for class_index in range(len(CLASS_NAMES))
                for k in range(count)
            ]
            jobs += [(_write_scene, whole / "unlabelled", k, resolution, seed) for k in range(num_unlabelled)]
            with ThreadPoolExecutor(_THREADS) as pool:
                for _ in pool.map(lambda job: job[0](*job[1:]), jobs):
                    pass
            (whole / "demo.json").write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
            whole.rename(folder)
    except OSError as error:
        if folder.exists() and _holds(folder, parameters):  # another process was faster
            return folder
        raise UserError(f"cannot write the demo set to {folder}: {error}") from error
    return folder
