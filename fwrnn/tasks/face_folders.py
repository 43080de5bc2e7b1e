"""Photographs of faces: found in folders, aligned by the eyes and the nose, read as 48×48 grey.

The paper aligns its faces "by eye and nose points". These come from ``DATA_DIR/landmarks.csv``:

    file,left_eye_x,left_eye_y,right_eye_x,right_eye_y,nose_x,nose_y
    session01/multiview/001/01/05_1/001_01_01_051_07.png,278,221,345,220,312,264

``file`` is relative to DATA_DIR; left is left in the picture; the centre of its first pixel is
(0, 0). A picture without points is cropped around its centre instead.
"""

import csv
import logging
import math
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from fwrnn.errors import UserError
from fwrnn.tasks.drawn_faces import EXPRESSIONS, SIZE

log = logging.getLogger("fwrnn")

LANDMARKS = "landmarks.csv"
_COLUMNS = ["file", "left_eye_x", "left_eye_y", "right_eye_x", "right_eye_y", "nose_x", "nose_y"]
# Where the left eye, the right eye and the nose come to, as x + iy.
FIXED_POINTS = np.array([15 + 17j, 32 + 17j, 23.5 + 28j])
_OVERSAMPLING = 3
# Multi-PIE's frames show head and shoulders: the face is in this share of their height. Ours.
_MULTI_PIE_CROP = 0.6
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".pgm", ".ppm", ".webp"}
_SESSIONS = {  # the expression of each recording
    1: {1: "neutral", 2: "smile"},
    2: {1: "neutral", 2: "surprise", 3: "squint"},
    3: {1: "neutral", 2: "smile", 3: "disgust"},
    4: {1: "neutral", 2: "neutral", 3: "scream"},
}

Points = np.ndarray  # the left eye, the right eye and the nose, complex x + iy


class Photo(NamedTuple):
    """A picture to be read: its path relative to the data folder, its class, its person."""

    file: str
    target: int
    person: str
    size: int
    modified: int


class Photos(NamedTuple):
    """All pictures of a data folder, ``crop`` being the share of a frame that shows the face."""

    folder: Path
    found: list[Photo]
    labels: tuple[str, ...]
    landmarks: dict[str, Points]
    crop: float


def find_multi_pie(data_dir: str, cameras: Sequence[str]) -> Photos:
    """The pictures of some cameras in Multi-PIE's folders, under all illuminations:

        session01/multiview/001/01/05_1/001_01_01_051_07.png
        session / multiview / subject / recording / camera / …_illumination

    in DATA_DIR, DATA_DIR/data or DATA_DIR/Multi-Pie/data.

    Raises:
        UserError: there are no such folders, or none of a camera; or a broken ``landmarks.csv``.
        OSError: a folder cannot be read.
    """
    folder = Path(data_dir)
    roots = [folder, folder / "data", folder / "Multi-Pie" / "data"]
    missing, existing, found = [], set(), []
    root = next((r for r in roots for n in _SESSIONS if _session(r, n).is_dir()), None)
    if root is None:
        raise UserError(
            f"task.data_dir: '{data_dir}' holds no session01/multiview … session04/multiview, nor "
            "do data or Multi-Pie/data in it; give the folder that holds Multi-PIE's sessions"
        )
    log.info(f"looking for the images of cameras {', '.join(cameras)} in {root}")
    for session, recordings in _SESSIONS.items():
        if not _session(root, session).is_dir():
            missing.append(f"session{session:02}")
            continue
        for subject in _entries(_session(root, session)):
            for recording, label in recordings.items():
                here = _entries(Path(subject.path, f"{recording:02}"))
                existing.update(entry.name for entry in here if Path(entry).is_dir())
                for camera in (entry.path for entry in here if entry.name in cameras):
                    target = EXPRESSIONS.index(label)
                    found += _photos(folder, _entries(camera), target, subject.name)
    used = {photo.file.split("/")[-2] for photo in found}
    absent = [camera for camera in cameras if camera not in used]
    if absent:
        raise UserError(
            f"task.cameras: no images of {', '.join(absent)} in '{root}'; the cameras there are "
            f"{', '.join(sorted(existing)) or 'none'}"
        )
    if missing:
        log.warning(f"{root} has no {', '.join(missing)}; its expressions will be missing")
    return Photos(folder, found, EXPRESSIONS, read_landmarks(folder), _MULTI_PIE_CROP)


def find_folders(data_dir: str, people_needed: int) -> Photos:
    """The pictures in DATA_DIR/CLASS/…; anything whose name begins with a dot is ignored.

    Who is seen is the folder below the class, CLASS/PERSON/…, when every picture lies in one.
    Otherwise it is what the file's name begins with, PERSON_… or PERSON-…, provided that this makes
    ``people_needed`` people. The same name is the same person in all classes.

    Raises:
        UserError: no pictures, one class, or people that cannot be told apart; or a broken
            ``landmarks.csv``.
        OSError: a folder cannot be read.
    """
    folder, found, labels, empty = Path(data_dir), [], [], []
    for entry in _entries(folder):
        if Path(entry).is_dir():
            inside = _photos(folder, _below(entry.path), len(labels), person="")
            found += inside
            (labels if inside else empty).append(entry.name)
    if len(labels) < 2:
        raise UserError(
            f"task.data_dir: '{data_dir}' must hold one folder of images for each of two or more "
            f"classes, found {len(labels)} ({', '.join(sorted(_SUFFIXES))} count as images)"
        )
    if empty:
        log.warning(f"no class, as they hold no images: {', '.join(empty)}, in {data_dir}")
    people = _people([photo.file for photo in found], data_dir, people_needed)
    found = [photo._replace(person=who) for photo, who in zip(found, people, strict=True)]
    return Photos(folder, found, tuple(labels), read_landmarks(folder), crop=1.0)


def _people(files: list[str], data_dir: str, needed: int) -> list[str]:
    """Who is seen in each of the files CLASS/…; see ``find_folders``."""
    parts = [file.split("/") for file in files]
    if all(len(names) > 2 for names in parts):
        people = [names[1] for names in parts]
        log.info(f"{data_dir}: {len(set(people)):,} people, told by the folders CLASS/PERSON")
        return people
    matches = [re.match(r"([^_-]+)[_-]", names[-1]) for names in parts]
    people = [match[1] for match in matches if match]
    if len(people) < len(files) or len(set(people)) < needed:
        unclear = next((f for f, m in zip(files, matches, strict=True) if not m), None)
        got = f"{unclear!r} has neither" if unclear else f"names give {len(set(people))} people"
        raise UserError(
            f"task.data_dir: cannot tell the people in '{data_dir}' apart; put every image into a "
            f"folder of its person, CLASS/PERSON/FILE, or name it CLASS/PERSON_REST or PERSON-REST "
            f"with {needed} people or more (task.val_identities + task.test_identities + 1): {got}"
        )
    log.info(f"{data_dir}: {len(set(people)):,} people, told by the names PERSON_… of the files")
    return people


def _session(root: Path, number: int) -> Path:
    return root / f"session{number:02}" / "multiview"


def _entries(folder: str | Path) -> list[os.DirEntry]:
    """What is in a folder, sorted and without hidden files; nothing when it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if e.name[0] != "."), key=lambda e: e.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _below(folder: str) -> Iterator[os.DirEntry]:
    """All files in a folder, however deep."""
    for entry in _entries(folder):
        if Path(entry).is_dir():
            yield from _below(entry.path)
        else:
            yield entry


def _photos(
    folder: Path, entries: Iterator[os.DirEntry] | list[os.DirEntry], target: int, person: str
) -> list[Photo]:
    photos = []
    for entry in entries:
        if Path(entry.name).suffix.lower() in _SUFFIXES:
            try:
                status = entry.stat()
            except OSError:  # a dangling link, say; reading it will fail and be counted
                size, modified = 0, 0
            else:
                # The latter for one that could not be read before its permissions changed.
                size, modified = status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)
            file = Path(entry.path).relative_to(folder).as_posix()
            photos.append(Photo(file, target, person, size, modified))
    return photos


def read_landmarks(folder: Path) -> dict[str, Points]:
    """The points in ``folder/landmarks.csv`` by file; none when there is no such file.

    Raises:
        UserError: a malformed row, by its number.
        OSError: the file cannot be read.
    """
    path = folder / LANDMARKS
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except FileNotFoundError:
        return {}
    rows = csv.reader(text.splitlines())
    landmarks: dict[str, Points] = {}
    try:
        columns = [name.strip() for name in next(rows, [])]
        if sorted(columns) != sorted(_COLUMNS):
            raise ValueError(f"expected the columns {','.join(_COLUMNS)}, got {','.join(columns)}")
        for row in rows:
            if row:
                file, points = _points(row, columns)
                if file in landmarks:
                    raise ValueError(f"a second row for {file!r}")
                landmarks[file] = points
    except (ValueError, csv.Error) as error:
        raise UserError(f"{path}, line {rows.line_num}: {error}") from None
    return landmarks


def _points(row: list[str], columns: list[str]) -> tuple[str, Points]:
    """A row of ``landmarks.csv``: its file and points."""
    if len(row) != len(columns):
        raise ValueError(f"expected {len(columns)} fields, got {len(row)}")
    fields = dict(zip(columns, row, strict=True))
    try:
        x, y, u, v, nose, tip = (float(fields[name]) for name in _COLUMNS[1:])
    except ValueError as error:
        raise ValueError(f"coordinates must be numbers: {error}") from None
    if not all(map(math.isfinite, (x, y, u, v, nose, tip))):
        raise ValueError("coordinates must be finite")
    if x >= u:
        raise ValueError(f"left means left in the picture, but left_eye_x {x} ≥ right_eye_x {u}")
    file = Path(fields["file"].strip().replace("\\", "/")).as_posix()
    return file, np.array([x + 1j * y, u + 1j * v, nose + 1j * tip])


def read_photos(photos: Photos) -> tuple[np.ndarray, np.ndarray]:
    """The pictures (N, 48, 48) uint8, and which of the N could be read, (N) bool."""
    images = np.zeros((len(photos.found), SIZE, SIZE), np.uint8)
    readable = np.ones(len(images), bool)

    def read(photo: Photo) -> np.ndarray | None:
        path = photos.folder / photo.file
        return read_face(path, photos.landmarks.get(photo.file), photos.crop)

    with warnings.catch_warnings(), ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        faces = pool.imap(read, photos.found, chunksize=16)
        with closing(tqdm(faces, "reading faces", len(images), leave=False, disable=None)) as bar:
            for index, face in enumerate(bar):
                if face is None:
                    readable[index] = False
                else:
                    images[index] = face
    return images, readable


def read_face(path: Path, points: Points | None, crop: float) -> np.ndarray | None:
    """One picture as grey (48, 48) uint8, or None when it cannot be read.

    It is aligned by the points; without them, the middle square of ``crop`` times the shorter side
    is what counts.
    """
    try:
        with Image.open(path) as file:
            image = _grey(ImageOps.exif_transpose(file))
            return np.asarray(_cropped(image, crop) if points is None else aligned(image, points))
    except Exception:  # decoders raise anything on damaged files, not only OSError
        return None


def _grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits, which PIL would clip instead of scaling
        return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    return image.convert("L")


def _cropped(image: Image.Image, crop: float) -> Image.Image:
    half = crop * min(image.size) / 2
    x, y = image.width / 2, image.height / 2
    box = (x - half, y - half, x + half, y + half)
    return image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box)


def aligned(image: Image.Image, points: Points) -> Image.Image:
    """Turned, scaled and moved so that the points come nearest to ``FIXED_POINTS``.

    With points p and fixed points q as complex numbers the map is z → az + b, and the least-squares
    a = Σ conj(p - p̄)(q - q̄) / Σ|p - p̄|², b = q̄ - a p̄. Outside of the picture it is black.
    """
    source, target = points + (0.5 + 0.5j), FIXED_POINTS + (0.5 + 0.5j)  # from pixels' corners
    spread = source - source.mean()
    a = (spread.conj() * (target - target.mean())).sum() / (np.abs(spread) ** 2).sum()
    b = target.mean() - a * source.mean()
    step = 1 / (a * _OVERSAMPLING)  # what one pixel of the enlarged result is in the picture
    origin = -b / a
    shrink = max(1, int(abs(step)))  # first, so that no pixel of a large picture is left out
    image, step, origin = image.reduce(shrink), step / shrink, origin / shrink
    rows = (step.real, -step.imag, origin.real, step.imag, step.real, origin.imag)
    side = SIZE * _OVERSAMPLING
    large = image.transform((side, side), Image.Transform.AFFINE, rows, Image.Resampling.BILINEAR)
    return large.reduce(_OVERSAMPLING)
