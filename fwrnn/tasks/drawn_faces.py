"""Drawn faces: a stand-in for licensed photographs, for tests and for people without a licence.

A face is painted on a turned ellipsoid. What is painted is a person (the shape of the head, hair,
eyes, nose, skin, sometimes glasses, moustache or beard) plus an expression of varying strength;
then come light from one side, misalignment and noise. Everything is vectorised over the images of
a chunk: a number of each face is an array (B, 1, 1), a picture (B, 48, 48).

Lengths are pixels of the finished picture from its centre, x to the right and y down.
"""

from types import SimpleNamespace

import numpy as np
from tqdm import trange

SIZE = 48
EXPRESSIONS = ("neutral", "smile", "surprise", "squint", "disgust", "scream")
SHARES = (0.4, 0.2, 0.1, 0.1, 0.1, 0.1)  # unbalanced as Multi-PIE is; neutral is in every session
_CHUNK = 64  # faces drawn at once, so that the arrays stay in the processor's cache

# What differs from person to person: uniform between the two.
_PERSON = {
    "head_width": (16.0, 19.5), "head_height": (21.0, 24.5), "skin": (0.45, 0.9),
    "hair": (0.05, 0.65), "hairline": (-19.0, -13.0), "hair_curve": (1.0, 8.0),
    "hair_length": (-14.0, 22.0), "eye_distance": (7.4, 9.4), "eye_width": (2.9, 4.1),
    "eye": (1.5, 2.4), "iris": (0.05, 0.4), "brow": (3.9, 5.8), "brow_slope": (-0.9, 0.9),
    "brow_arch": (0.2, 1.1), "brow_thickness": (0.4, 1.1), "brow_darkness": (0.35, 0.9),
    "nose": (4.2, 6.2), "nose_width": (1.9, 3.2), "mouth": (10.6, 13.6), "mouth_width": (4.4, 6.8),
    "bend": (-0.9, 0.8), "lip": (0.6, 1.5), "lip_darkness": (0.1, 0.4), "fold": (0.0, 0.3),
    "bag": (0.0, 0.35), "line": (0.0, 0.25),
}  # fmt: skip
_SOMETIMES = {"glasses": 0.2, "moustache": 0.12, "beard": 0.1}  # in so large a share of the people

# What an expression at full strength adds. eye: lids opened; brow: brows raised; brow_slope: their
# inner ends down; bend: corners of the mouth up; gap: mouth opened; mouth: moved down; fold: lines
# beside the nose; bag: lines below the eyes; wrinkle: across the nose; line: on the forehead.
_ADDED = {
    "neutral": {},
    "smile": {"bend": 2.4, "gap": 1.2, "mouth_width": 1.5, "teeth": 1.0, "fold": 0.5, "eye": -0.4},
    "surprise": {"gap": 2.6, "mouth_width": -1.6, "eye": 1.1, "brow": 2.2, "line": 0.6},
    "squint": {"eye": -1.6, "brow": -1.1, "brow_slope": 0.6, "bag": 0.7, "wrinkle": 0.2},
    "disgust": {"bend": -1.7, "gap": 0.4, "mouth": -1.0, "fold": 0.7, "wrinkle": 0.9, "eye": -0.7,
                "brow": -1.2, "brow_slope": 1.2, "teeth": 0.4},
    "scream": {"gap": 3.6, "mouth": 1.0, "mouth_width": 0.4, "teeth": 0.9, "eye": -1.1,
               "brow": -0.6, "fold": 0.5, "wrinkle": 0.3, "bag": 0.4},
}  # fmt: skip
_STRENGTH = (0.5, 1.0)
_YAWS = (-15.0, 0.0, 15.0)


def draw_faces(
    identities: int, images_per_identity: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, 48, 48) uint8, targets (N) int64 into ``EXPRESSIONS``, people (N) int64.

    N = identities · images_per_identity; the same arguments give the same images.
    """
    rng = np.random.default_rng(seed)
    people = np.repeat(np.arange(identities), images_per_identity)
    targets = rng.choice(len(EXPRESSIONS), len(people), p=SHARES)
    faces = _persons(identities, people, rng)
    _add_expressions(faces, targets, rng)
    _add_circumstances(faces, len(people), rng)
    images = np.empty((len(people), SIZE, SIZE), np.uint8)
    for start in trange(0, len(people), _CHUNK, desc="drawing faces", leave=False, disable=None):
        part = slice(start, start + _CHUNK)
        chunk = {name: value[part].astype(np.float32) for name, value in faces.items()}
        picture = _paint(SimpleNamespace(**{k: v[:, None, None] for k, v in chunk.items()}))
        picture += chunk["noise"][:, None, None] * rng.standard_normal(picture.shape, np.float32)
        images[part] = (picture.clip(0, 1) * 255).round()
    return images, targets, people


def _persons(count: int, people: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The numbers of each image's person, (N) each."""
    faces = {name: rng.uniform(*limits, count)[people] for name, limits in _PERSON.items()}
    for name, share in _SOMETIMES.items():
        faces[name] = (rng.random(count) < share)[people] * rng.uniform(0.4, 0.9, count)[people]
    return faces


def _add_expressions(
    faces: dict[str, np.ndarray], targets: np.ndarray, rng: np.random.Generator
) -> None:
    """Change the faces by their expressions, each part of a face with a strength of its own."""
    strength = rng.uniform(*_STRENGTH, len(targets))
    parts = {part for added in _ADDED.values() for part in added}
    for part in sorted(parts):
        full = np.array([_ADDED[name].get(part, 0.0) for name in EXPRESSIONS])
        change = full[targets] * strength * rng.uniform(0.7, 1.3, len(targets))
        faces[part] = faces.get(part, 0.0) + change
    faces["gap"] = faces["gap"] + rng.uniform(0.2, 0.6, len(targets))
    faces["eye"] = (faces["eye"] + rng.normal(0, 0.15, len(targets))).clip(0.25, None)
    faces["brow"] = faces["brow"] + rng.normal(0, 0.3, len(targets))
    faces["bend"] = faces["bend"] + rng.normal(0, 0.25, len(targets))


def _add_circumstances(faces: dict[str, np.ndarray], count: int, rng: np.random.Generator) -> None:
    """Camera, light, background and misalignment."""
    faces["yaw"] = np.deg2rad(rng.choice(_YAWS, count) + rng.normal(0, 3, count))
    faces["light"] = np.deg2rad(rng.uniform(-90, 90, count))
    faces["ambient"] = rng.uniform(0.2, 0.8, count)
    faces["exposure"] = rng.uniform(0.7, 1.2, count)
    faces["background"] = rng.uniform(0.15, 0.7, count)
    faces["shift_x"], faces["shift_y"] = rng.uniform(-1, 1, (2, count))
    faces["tilt"] = np.deg2rad(rng.normal(0, 2.5, count))
    faces["scale"] = rng.normal(1, 0.04, count)
    faces["noise"] = rng.uniform(0.01, 0.04, count)


def _inside(distance: np.ndarray) -> np.ndarray:
    """How much of each pixel a shape covers, from the distance to its edge (negative inside)."""
    return (0.5 - distance).clip(0, 1)


def _cover(picture: np.ndarray, coverage: np.ndarray, value: np.ndarray | float) -> None:
    picture += coverage * (value - picture)


def _lens(
    x: np.ndarray, y: np.ndarray, width: np.ndarray, height: np.ndarray | float
) -> np.ndarray:
    """Distance to the edge of a lens of half axes ``width`` and ``height``, as eyes and mouths."""
    return np.abs(y) - height * _rounded(x / width) + (np.abs(x) - width).clip(0, None)


def _rounded(u: np.ndarray) -> np.ndarray:
    return np.sqrt((1 - u * u).clip(0, None))


def _paint(f: SimpleNamespace) -> np.ndarray:
    """The pictures (B, 48, 48), 0 black to 1 white, of faces whose numbers are (B, 1, 1)."""
    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    across, down = (axis - f.shift_x) * f.scale, (axis[:, None] - f.shift_y) * f.scale
    x, y = across + f.tilt * down, down - f.tilt * across
    turned = (
        1.1 * f.head_width * np.sin(np.arcsin((x / (1.1 * f.head_width)).clip(-1, 1)) - f.yaw)
    )  # where on the face, seen from the front, the pixel lies
    picture = np.broadcast_to(f.background, (*x.shape[:1], SIZE, SIZE)).copy()
    nx, ny = x / f.head_width, y / f.head_height
    radius = np.sqrt(nx * nx + ny * ny)
    head = _inside((radius - 1) * f.head_width)
    behind = np.maximum((radius - 1.13) * f.head_width, y - f.hair_length)
    _cover(picture, _inside(behind), f.hair)
    _cover(picture, head, f.skin)
    side = np.abs(turned)
    _paint_eyes(f, picture, side, y)
    _paint_nose(f, picture, turned - 4 * np.sin(f.yaw), side, y)
    _paint_mouth(f, picture, turned, y, head)
    front = _inside(y - f.hairline - f.hair_curve * (turned / 15) ** 2)
    _cover(picture, _inside((radius - 1.06) * f.head_width) * front, f.hair)
    depth = np.sqrt((1 - radius * radius).clip(0.05, None))
    lit = (nx * np.sin(f.light) + depth * np.cos(f.light)).clip(0, None)
    shade = f.exposure * (f.ambient + (1 - f.ambient) * 1.2 * lit)
    picture *= 1 + _inside(behind).clip(head, None) * (shade - 1)
    return picture


def _paint_eyes(f: SimpleNamespace, picture: np.ndarray, side: np.ndarray, y: np.ndarray) -> None:
    """Both eyes at once with lids, brows, glasses: ``side`` is the distance from the middle."""
    x, y = side - f.eye_distance, y + 6
    shadow = np.exp(-((x / 5.5) ** 2) - (y / 3.5) ** 2)
    picture *= 1 - 0.2 * shadow
    opening = _lens(x, y, f.eye_width, f.eye)
    eye = _inside(opening)
    _cover(picture, eye, 0.25 + 0.7 * f.skin)
    _cover(picture, eye * _inside(np.hypot(x, y) - 1.7), f.iris)
    within = _inside(np.abs(x) - f.eye_width)
    lid = f.eye * _rounded(x / f.eye_width)
    _cover(picture, within * _inside(np.abs(y + lid) - 0.2) * 0.8, 0.1)
    _cover(picture, within * _inside(np.abs(y - lid - 1.3) - 0.1) * f.bag, 0.2 * f.skin)
    along = x / 4.6
    height = f.brow + f.brow_slope * along - f.brow_arch * (along * along - 0.4)
    brow = np.abs(y + height) - f.brow_thickness + (np.abs(x) - 4.6).clip(0, None)
    _cover(picture, _inside(brow) * f.brow_darkness, 0.6 * f.hair)
    frame = np.abs(np.hypot(x / 5.6, y / 4.4) - 1) * 5 - 0.3
    bridge = np.maximum(np.abs(y + 0.8) - 0.3, side - f.eye_distance + 5.6)
    _cover(picture, _inside(np.minimum(frame, bridge)) * f.glasses, 0.1)
    lines = np.exp(-((side / 9) ** 2) - ((y + 9.5) / 2.2) ** 2) * (np.cos(2.6 * y) > 0)
    picture *= 1 - 0.5 * f.line * lines


def _paint_nose(
    f: SimpleNamespace, picture: np.ndarray, x: np.ndarray, side: np.ndarray, y: np.ndarray
) -> None:
    """The nose, wrinkles on its bridge, folds beside it; ``x`` is turned more, as it stands out."""
    length = ((y + 6) / (f.nose + 6)).clip(0, 1)
    width = 1.0 + f.nose_width * length
    upon = _inside(np.abs(y - (f.nose - 6) / 2) - (f.nose + 6) / 2)
    slope = x / width * np.exp(-((x / width) ** 2)) * upon
    picture *= 1 + slope * (0.1 + 0.35 * np.abs(np.sin(f.light))) * np.sign(f.light)
    nostril = np.hypot((np.abs(x) - 0.6 * f.nose_width) / 1.3, y - f.nose)
    _cover(picture, _inside(nostril - 0.5) * 0.8, 0.25 * f.skin)
    under = np.abs(y - f.nose - 0.8) + (np.abs(x) - f.nose_width).clip(0, None)
    _cover(picture, _inside(under) * 0.3, 0.3 * f.skin)
    creases = np.exp(-((x / 3) ** 2) - ((y + 3.5) / 2.8) ** 2) * (0.5 + 0.5 * np.cos(2.4 * y))
    picture *= 1 - 0.6 * f.wrinkle * creases
    along = (y - f.nose + 1) / (f.mouth - f.nose + 1)
    fold = np.abs(side - f.nose_width - 1.2 - (f.mouth_width - f.nose_width + 0.6) * along) - 0.2
    fold += 3 * (np.abs(along - 0.5) - 0.5).clip(0, None)
    _cover(picture, _inside(fold) * f.fold.clip(0, 1) * 0.7, 0.3 * f.skin)


def _paint_mouth(
    f: SimpleNamespace, picture: np.ndarray, x: np.ndarray, y: np.ndarray, head: np.ndarray
) -> None:
    """Lips, what is between them, moustache and beard."""
    moustache = _lens(x, y - (f.nose + f.mouth) / 2, f.mouth_width, 1.5)
    _cover(picture, _inside(moustache) * f.moustache, f.hair)
    beard = head * _inside(f.mouth - 5 - y + 0.05 * (14 - np.abs(x)).clip(0, None) ** 2)
    _cover(picture, beard * f.beard, f.hair)
    y = y - f.mouth + f.bend * ((x / f.mouth_width) ** 2).clip(None, 1.5) - 0.4 * f.bend
    opening = _lens(x, y, f.mouth_width, f.gap)
    lips = _lens(x, y, f.mouth_width + 0.3, f.gap + f.lip)
    _cover(picture, _inside(lips), f.skin * (1 - f.lip_darkness))
    _cover(picture, _inside(opening), 0.12)
    teeth = _inside(opening + 0.3) * _inside(y + 0.25 * f.gap)
    _cover(picture, teeth * f.teeth.clip(0, 1), 0.85)
