"""Facial expressions (section 4.3 and table 3 of the paper), and a stand-in for its data.

A grey picture of 48×48 shows a face; what is asked for is its expression: neutral, smile, surprise,
squint, disgust or scream. No person of the test is seen in training.

CMU's Multi-PIE is licensed and cannot be downloaded. Those who have it read it with "multi_pie";
"folders" reads any pictures sorted into folders of classes; "synthetic" draws faces, so that
everything runs for everybody, but its error rates do not compare with table 3.

The paper has 317 people for training and 20 for the test and says nothing of validation: the people
for validation are taken out of its 317 here.
"""

import hashlib
import io
import json
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fwrnn.config import at_least
from fwrnn.errors import RunFailed, UserError
from fwrnn.files import check_folder, write_whole
from fwrnn.interfaces import Examples
from fwrnn.rule import one_of
from fwrnn.tasks import cache
from fwrnn.tasks.drawn_faces import EXPRESSIONS, SIZE, draw_faces
from fwrnn.tasks.face_folders import LANDMARKS, Photos, find_folders, find_multi_pie, read_photos
from fwrnn.tasks.images import ImageTask
from fwrnn.tasks.schema import LAYOUTS

log = logging.getLogger("fwrnn")

MOST_FACES = 100_000  # drawn
_FORMAT = 1  # of the cached files; raise it whenever the same sources give other arrays
_SPLIT = 317  # seeds the order of people, which no setting changes: the test people stay the same


class Faces(NamedTuple):
    """All pictures of a data set, as they are cached.

    ``images`` (N, 48, 48) uint8, ``targets`` (N) int64, ``people`` (N) str; ``unreadable`` are the
    names of the pictures that are left out.
    """

    images: np.ndarray
    targets: np.ndarray
    people: np.ndarray
    unreadable: np.ndarray


class FacialExpression(ImageTask):
    """Faces, 48×48, and the names of their expressions.

    Args:
        layout: "multi_pie", "folders" or "synthetic"; see ``face_folders`` and ``drawn_faces``.
        data_dir: the folder of the pictures; "synthetic" has none.
        cache_dir: where the finished arrays are kept. None: a folder of the user's cache.
        cameras: of Multi-PIE; the paper's are those at -15°, 0° and +15°, the default.
        val_identities, test_identities: people for validation and for the test. "folders" takes
            fewer when they would be more than 40 % of all people.
        identities, images_per_identity: people and pictures of each that are drawn.
        max_unreadable: the share of pictures, 0 to 1, that may be damaged and are then left out.
        shift, rotation, seed: of the augmentation, off by default; see ``ImageTask``. The drawn
            faces depend on ``seed`` too.

    ``stand_in`` tells that the faces are drawn.

    Raises:
        ValueError: a setting out of range.
        UserError: the pictures are missing, too many are damaged, their people are too few or
            cannot be told apart, or the cache cannot be written.
    """

    def __init__(
        self,
        layout: str = "synthetic",
        data_dir: str | None = None,
        cache_dir: str | None = None,
        cameras: Sequence[str] = ("14_0", "05_1", "05_0"),
        val_identities: int = 20,
        test_identities: int = 20,
        identities: int = 120,
        images_per_identity: int = 150,
        max_unreadable: float = 0.01,
        shift: float = 0.0,
        rotation: float = 0.0,
        seed: int = 0,
    ):
        counts = {"val_identities": val_identities, "test_identities": test_identities}
        counts |= {"identities": identities, "images_per_identity": images_per_identity}
        cameras = _check(layout, counts, cameras, max_unreadable, seed)
        store = Path(cache_dir).expanduser() if cache_dir else cache.cache_dir("faces")
        self.stand_in = layout == "synthetic"
        if self.stand_in:
            log.warning(
                "the faces are drawn, a stand-in for Multi-PIE: their error rates do not compare "
                "with table 3 of the paper"
            )
            if data_dir is not None:
                log.warning("task.data_dir is not looked at: task.layout=synthetic reads no folder")
            drawing = (identities, images_per_identity, seed)
            faces, labels = _cached(store, drawing, lambda: _drawn(*drawing)), EXPRESSIONS
            people = set(faces.people.tolist())
        else:
            photos = _find(layout, data_dir, cameras, val_identities + test_identities + 1)
            people = {photo.person for photo in photos.found}
            faces = _photographed(store, photos, max_unreadable)
            labels = photos.labels
        sizes = (val_identities, test_identities)
        groups = split_people(people, *sizes, shrink=layout == "folders")
        super().__init__(_splits(faces, groups), labels, shift, rotation, seed)


def _check(
    layout: str, counts: dict[str, int], cameras: Sequence[str], max_unreadable: float, seed: int
) -> list[str]:
    """The cameras, written as the folders are, if all settings are in range."""
    one_of("layout", layout, LAYOUTS)
    for name, value in counts.items():
        at_least(1, name, value)
    held_out = counts["val_identities"] + counts["test_identities"]
    if layout == "synthetic" and counts["identities"] <= held_out:
        raise ValueError(
            f"identities must be more than val_identities + test_identities = {held_out}, so that "
            f"some are left for training, got {counts['identities']}"
        )
    if layout == "synthetic" and counts["identities"] * counts["images_per_identity"] > MOST_FACES:
        raise ValueError(
            f"identities times images_per_identity must be {MOST_FACES:,} or less, got "
            f"{counts['identities']} and {counts['images_per_identity']}"
        )
    if not 0 <= max_unreadable <= 1:
        raise ValueError(f"max_unreadable must be a share, 0 to 1, got {max_unreadable}")
    at_least(0, "seed", seed)
    # A command line may read 14_0 as a number, and files are named by 140: both are meant.
    matches = [re.fullmatch(r"(\d\d)_?(\d)", str(camera)) for camera in cameras]
    found = [match for match in matches if match]
    if not found or len(found) < len(matches):
        raise ValueError(f"cameras must be Multi-PIE's, such as 05_1, got {list(cameras)}")
    return list(dict.fromkeys(f"{match[1]}_{match[2]}" for match in found))


def _find(layout: str, data_dir: str | None, cameras: list[str], people_needed: int) -> Photos:
    """The pictures of "multi_pie" or "folders"."""
    if layout == "multi_pie":
        expected = "the folder that holds Multi-PIE's session01 … session04"
        advice = "; Multi-PIE is licensed: without it, task.layout=synthetic runs for everybody"
    else:
        expected, advice = "a folder of images sorted into folders, CLASS/PERSON/FILE", ""
    if not data_dir:
        raise UserError(f"task.layout={layout} needs task.data_dir, {expected}{advice}")
    folder = Path(data_dir).expanduser()
    try:
        if not folder.is_dir():
            problem = f"'{data_dir}' is a file" if folder.exists() else f"there is no '{data_dir}'"
            raise UserError(f"task.data_dir or --data-dir: {problem}; give {expected}{advice}")
        if layout == "multi_pie":
            photos = find_multi_pie(str(folder), cameras)
        else:
            photos = find_folders(str(folder), people_needed)
    except OSError as error:
        raise UserError(
            f"task.data_dir: cannot read '{error.filename or folder}': {error.strerror}; "
            "change its permissions or give another folder"
        ) from error
    _report_landmarks(photos)
    return photos


def _report_landmarks(photos: Photos) -> None:
    bare = [photo.file for photo in photos.found if photo.file not in photos.landmarks]
    if not photos.landmarks:
        log.warning(
            "the faces are cropped, not aligned: the paper aligns them by eye and nose points; "
            f"give those in {photos.folder / LANDMARKS} with the columns file, left_eye_x, "
            "left_eye_y, right_eye_x, right_eye_y, nose_x, nose_y"
        )
    elif bare:
        log.warning(
            f"{len(bare):,} of {len(photos.found):,} images are cropped, not aligned, as "
            f"{LANDMARKS} lacks them: {_some(bare)}"
        )


def _photographed(store: Path, photos: Photos, max_unreadable: float) -> Faces:
    """The pictures as arrays, once it is known that enough of them can be read."""

    def check(faces: Faces) -> None:
        bad, total = faces.unreadable.tolist(), len(photos.found)
        if len(bad) > max_unreadable * total:
            raise UserError(
                f"{len(bad):,} of {total:,} images in '{photos.folder}' cannot be read, more than "
                f"task.max_unreadable={max_unreadable:g} allows: {_some(bad)}"
            )
        if bad:
            log.warning(f"{len(bad):,} of {total:,} images cannot be read: {_some(bad)}")

    points = photos.folder / LANDMARKS
    status = points.stat() if points.exists() else None
    about = [status and (status.st_size, status.st_mtime_ns), photos.crop]
    source = [str(photos.folder.resolve()), photos.labels, photos.found, *about]
    return _cached(store, source, lambda: _read(photos), check)


def _read(photos: Photos) -> Faces:
    images, good = read_photos(photos)
    targets = np.array([photo.target for photo in photos.found])
    people = np.array([photo.person for photo in photos.found])
    files = np.array([photo.file for photo in photos.found])
    return Faces(images[good], targets[good], people[good], files[~good])


def _drawn(identities: int, images_per_identity: int, seed: int) -> Faces:
    images, targets, people = draw_faces(identities, images_per_identity, seed)
    return Faces(images, targets, np.array([f"{n:04}" for n in people]), np.array([], str))


def _some(files: list[str]) -> str:
    """The first ten names, quoted so that they stay on one line."""
    return ", ".join(map(repr, files[:10])) + (", …" if len(files) > 10 else "")


def _cached(
    store: Path,
    source: object,
    make: Callable[[], Faces],
    check: Callable[[Faces], None] = lambda faces: None,
) -> Faces:
    """What ``make`` gives, kept in ``store`` for the next time that ``source`` is the same.

    ``check`` sees it before it is kept, and every time.
    """
    key = hashlib.sha256(json.dumps([_FORMAT, source]).encode()).hexdigest()
    path = store / f"{key[:32]}.npz"
    faces = _load(path)
    if faces is not None:
        check(faces)
        return faces
    instead = "task.cache_dir=DIR chooses another folder"
    check_folder(store, instead)  # before the long work
    faces = make()
    check(faces)
    content = io.BytesIO()
    np.savez(content, **faces._asdict())
    try:
        write_whole(path, content.getbuffer())
    except RunFailed as error:
        raise UserError(f"{error}; {instead}") from error
    return faces


def _load(path: Path) -> Faces | None:
    """The arrays in a cached file; None when there is none, or a damaged one."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            faces = Faces(**{name: arrays[name] for name in Faces._fields})
        count = len(faces.targets)
        if faces.images.shape != (count, SIZE, SIZE) or faces.people.shape != (count,):
            raise ValueError("its arrays do not fit together")
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except Exception as error:  # numpy and zipfile raise anything on damaged files
        log.warning(f"{path} is damaged and is made again ({type(error).__name__})")
        return None
    return faces


def split_people(people: set[str], val: int, test: int, shrink: bool) -> dict[str, list[str]]:
    """Who is in "test", "val" and "train": the first of a fixed order, the next, and the rest.

    With ``shrink``, ``val`` and ``test`` together take no more than 40 % of the people, though one
    at least each.

    Raises:
        UserError: nobody is left for training.
    """
    if shrink and val + test > 0.4 * len(people):
        fit = 0.4 * len(people) / (val + test)
        asked, (val, test) = (val, test), (max(1, int(fit * n)) for n in (val, test))
        log.warning(
            f"of {len(people)} people {val} are for validation and {test} for the test, not "
            f"{asked[0]} and {asked[1]}, which would leave too few for training"
        )
    if len(people) <= val + test:
        raise UserError(
            f"{val} people for validation and {test} for the test leave none of {len(people)} for "
            "training; lower task.val_identities or task.test_identities, or give more people"
        )
    order = np.random.default_rng(_SPLIT).permutation(sorted(people)).tolist()
    return {"test": order[:test], "val": order[test : test + val], "train": order[test + val :]}


def _splits(faces: Faces, groups: dict[str, list[str]]) -> dict[str, Examples]:
    splits = {}
    for name, people in groups.items():
        chosen = np.isin(faces.people, people)
        if not chosen.any():
            raise UserError(f"no image of the {len(people)} people of the {name} split can be read")
        arrays = (faces.images[chosen], faces.targets[chosen].astype(np.int64))
        splits[name] = Examples(*map(torch.from_numpy, arrays))
    return splits
