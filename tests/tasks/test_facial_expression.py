"""Faces: found, split by people, aligned, cached, drawn; and what is said when that fails."""

import errno
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fwrnn.errors import UserError
from fwrnn.tasks import face_folders, facial_expression
from fwrnn.tasks.cache import cache_dir
from fwrnn.tasks.drawn_faces import EXPRESSIONS, draw_faces
from fwrnn.tasks.face_folders import FIXED_POINTS, read_face
from fwrnn.tasks.facial_expression import FacialExpression, split_people

SUBJECTS = ["001", "002", "004", "007", "010", "031"]
RECORDINGS = {  # (session, recording) → expression; levels of grey tell them apart below
    (1, 1): "neutral", (1, 2): "smile", (2, 1): "neutral", (2, 2): "surprise", (2, 3): "squint",
    (3, 1): "neutral", (3, 2): "smile", (3, 3): "disgust", (4, 1): "neutral", (4, 2): "neutral",
    (4, 3): "scream",
}  # fmt: skip
CAMERAS = ["05_0", "05_1", "08_1", "14_0"]
HEADER = "file,left_eye_x,left_eye_y,right_eye_x,right_eye_y,nose_x,nose_y"


@pytest.fixture(autouse=True)
def in_a_home_of_its_own(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    caplog.set_level(logging.INFO, logger="fwrnn")


@pytest.fixture
def multi_pie(tmp_path):
    """A tree as licensees have it; the grey is subject + 10 · camera + 40 · expression."""
    root = tmp_path / "pie"
    for number, subject in enumerate(SUBJECTS):
        for (session, recording), label in RECORDINGS.items():
            for view, camera in enumerate(CAMERAS):
                folder = root / f"session{session:02}/multiview/{subject}/{recording:02}/{camera}"
                folder.mkdir(parents=True)
                grey = number + 10 * view + 40 * EXPRESSIONS.index(label)
                lights = ("00", "07") if camera != "08_1" else ("00",)
                for light in lights:
                    name = f"{subject}_{session:02}_{recording:02}_{camera.replace('_', '')}"
                    Image.new("RGB", (64, 48), (grey,) * 3).save(folder / f"{name}_{light}.png")
    return root


@pytest.fixture
def folders(tmp_path):
    """CLASS/PERSON/FILE: two classes, eight people, two images of each, whose grey is theirs."""
    root = tmp_path / "sorted"
    for target, label in enumerate(["happy", "sad"]):
        for person in range(8):
            grey = 100 * target + 10 * person
            save(root / label / f"p{person}" / "deep" / "a.png", grey)
            save(root / label / f"p{person}" / "b.JPG", grey)
    return root


def save(path: Path, grey: int, size=(60, 60)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, grey).save(path)
    return path


def load(root: Path | None, layout: str = "multi_pie", val: int = 1, test: int = 1, **settings):
    data_dir = None if root is None else str(root)
    return FacialExpression(layout, data_dir, val_identities=val, test_identities=test, **settings)


def every(task) -> tuple[torch.Tensor, torch.Tensor]:
    splits = [task.split(name) for name in ("train", "val", "test")]
    return torch.cat([s.inputs for s in splits]), torch.cat([s.targets for s in splits])


def people_seen(task, name, people=10) -> set[int]:
    return {int(grey) % people for grey in task.split(name).inputs[:, 24, 24]}


def refusal(*arguments, **settings) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize("above", [".", "data", "Multi-Pie/data"])
def test_multi_pie_has_the_chosen_cameras_all_lights_and_its_labels(multi_pie, tmp_path, above):
    if above != ".":
        (tmp_path / "top" / above).parent.mkdir(parents=True)
        multi_pie.rename(tmp_path / "top" / above)
    task = load(tmp_path / "top" if above != "." else multi_pie)
    inputs, targets = every(task)
    assert inputs.dtype == torch.uint8
    assert inputs.shape == (6 * 11 * 3 * 2, 48, 48)
    assert task.spec.labels == EXPRESSIONS
    assert not task.stand_in
    grey = inputs[:, 24, 24].long()
    assert torch.equal(grey // 40, targets)
    assert set((grey % 40 // 10).tolist()) == {0, 1, 3}
    wanted = [sum(e == name for e in RECORDINGS.values()) * 36 for name in EXPRESSIONS]
    assert torch.bincount(targets).tolist() == wanted


def test_only_the_cameras_asked_for_are_read_however_they_are_written(multi_pie):
    for name in ("08_1", "081"):
        inputs, _ = every(load(multi_pie, cameras=[name]))
        assert set((inputs[:, 24, 24] % 40 // 10).tolist()) == {2}
        assert len(inputs) == 6 * 11


def test_people_never_cross_the_splits_and_no_seed_changes_who_is_tested(multi_pie):
    task = load(multi_pie, val=2, test=1)
    groups = [people_seen(task, name) for name in ("train", "val", "test")]
    assert [len(group) for group in groups] == [3, 2, 1]
    assert set.union(*groups) == set(range(6))
    assert people_seen(load(multi_pie, val=2, test=1, seed=5), "test") == groups[2]


def test_missing_session_is_warned_of(multi_pie, caplog):
    (multi_pie / "session04").rename(multi_pie / "later")
    assert 5 not in every(load(multi_pie))[1]
    assert any("has no session04" in line for line in warnings(caplog))


@pytest.mark.parametrize(("turn", "zoom"), [(0, 1), (20, 2.5), (-15, 9), (5, 0.7)])
def test_eyes_and_nose_come_to_the_fixed_points(tmp_path, turn, zoom):
    middle = 60 * zoom + 40j * zoom
    points = (FIXED_POINTS - FIXED_POINTS.mean()) * zoom * np.exp(1j * np.deg2rad(turn)) + middle
    rows, columns = np.mgrid[: round(90 * zoom), : round(110 * zoom)]
    apart = np.abs((columns + 1j * rows)[..., None] - points) / zoom
    dots = 20 + 200 * np.exp(-(apart**2)).sum(-1)
    Image.fromarray(dots.round().astype(np.uint8)).save(tmp_path / "dots.png")
    face = read_face(tmp_path / "dots.png", points, crop=1.0).astype(float)
    rows, columns = np.mgrid[:48, :48]
    for fixed in FIXED_POINTS:
        near = np.hypot(columns - fixed.real, rows - fixed.imag) < 4
        weight = np.where(near, face - 20, 0).clip(0)
        found = (weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()
        assert np.hypot(found[0] - fixed.real, found[1] - fixed.imag) < 0.2


def test_fine_stripes_are_averaged_and_not_sampled(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (600, 300))
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    points = np.array([215 + 200j, 385 + 200j, 300 + 310j])
    for given in (points, None):
        face = read_face(tmp_path / "stripes.png", given, crop=0.8)[4:-4, 4:-4]
        assert abs(int(face.min()) - 127) < 12
        assert abs(int(face.max()) - 127) < 12


def test_image_of_16_bits_keeps_its_greys(tmp_path):
    Image.fromarray(np.full((50, 50), 128 * 257, np.uint16)).save(tmp_path / "deep.png")
    assert (read_face(tmp_path / "deep.png", None, 1.0) == 128).all()


def test_images_without_landmarks_are_counted_and_named(folders, caplog):
    load(folders, "folders")
    assert any("aligns them by eye and nose points" in line for line in warnings(caplog))
    caplog.clear()
    rows = [f".\\{label}\\p{n}\\b.JPG,20,20,40,20,30,33" for label in ("happy", "sad")
            for n in range(8)]  # fmt: skip
    (folders / "landmarks.csv").write_text("\n".join([HEADER, *rows]))
    load(folders, "folders")
    assert any(
        "16 of 32 images are cropped" in line and "'happy/p0/deep/a.png'" in line
        for line in warnings(caplog)
    )


@pytest.mark.parametrize("row", [
    "a.png,1,2,3,4,5", "a.png,1,2,3,4,5,6,7", "a.png,1,2,3,4,5,x", "a.png,1,2,3,4,5,nan",
    "a.png,3,2,1,4,5,6", "ok.png,1,2,3,4,5,6", "a.png,1,2,3,4,5,", f"{'x' * 140_000},1,2,3,4,5,6",
], ids=range(8))  # fmt: skip
def test_malformed_landmarks_are_named_by_their_line(folders, row):
    (folders / "landmarks.csv").write_text(f"{HEADER}\nok.png,1,2,3,4,5,6\n{row}\n")
    assert "landmarks.csv, line 3: " in refusal(folders, "folders")


def test_landmarks_without_their_columns_say_so(folders):
    (folders / "landmarks.csv").write_text("file,x,y\n")
    assert "line 1: expected the columns file,left_eye_x" in refusal(folders, "folders")


def test_folders_name_classes_and_people(folders, caplog):
    save(folders / ".hidden" / "p1" / "a.png", 0)
    (folders / "notes").mkdir()
    task = load(folders, "folders", val=1, test=2)
    assert task.spec.labels == ("happy", "sad")
    inputs, targets = every(task)
    assert len(inputs) == 32
    assert torch.equal(inputs[:, 24, 24].long() // 100, targets)
    groups = [people_seen(task, name, 100) for name in ("train", "val", "test")]
    assert [len(group) for group in groups] == [5, 1, 2]
    assert len(set.union(*groups)) == 8
    assert "told by the folders" in caplog.text
    assert "no class, as they hold no images: notes" in caplog.text


@pytest.mark.parametrize("mark", ["_", "-"])
def test_names_of_files_tell_people_where_there_are_no_folders(tmp_path, caplog, mark):
    for label in ("happy", "sad"):
        for person in range(6):
            for take in range(2):
                save(tmp_path / "data" / label / f"p{person}{mark}{take}_x.png", 40 * person)
    task = load(tmp_path / "data", "folders")
    groups = [people_seen(task, name, 256) for name in ("train", "val", "test")]
    assert [len(group) for group in groups] == [4, 1, 1]
    assert len(set.union(*groups)) == 6
    assert "told by the names" in caplog.text


@pytest.mark.parametrize("name", ["img_{}.png", "{}.png"])
def test_people_that_cannot_be_told_apart_are_refused(tmp_path, name):
    for label in ("happy", "sad"):
        for number in range(6):
            save(tmp_path / "data" / label / name.format(number), 0)
    message = refusal(tmp_path / "data", "folders")
    assert "CLASS/PERSON/FILE" in message
    assert "CLASS/PERSON_REST" in message


def test_large_held_out_shares_of_folders_are_scaled_down(folders, caplog):
    task = load(folders, "folders", val=20, test=20)
    groups = [people_seen(task, name, 100) for name in ("train", "val", "test")]
    assert [len(group) for group in groups] == [6, 1, 1]
    assert any("of 8 people 1 are for validation and 1" in line for line in warnings(caplog))


@pytest.mark.parametrize("count", range(3, 60))
def test_scaled_down_shares_leave_most_people_for_training(count):
    groups = split_people({f"{n}" for n in range(count)}, 20, 10, shrink=True)
    assert sum(map(len, groups.values())) == count
    assert all(groups.values())
    assert len(groups["val"]) + len(groups["test"]) <= max(2, 0.4 * count)


def test_too_few_people_are_refused(multi_pie):
    assert "leave none of 6 for training" in refusal(multi_pie, val=3, test=3)


def test_synthetic_repeats_by_its_seed_and_has_the_promised_shares():
    settings = {"identities": 12, "images_per_identity": 40, "val_identities": 2,
                "test_identities": 3}  # fmt: skip
    task, again = FacialExpression(**settings), FacialExpression(**settings)
    other = FacialExpression(seed=1, **settings)
    assert [len(task.split(name).targets) for name in ("train", "val", "test")] == [280, 80, 120]
    assert torch.equal(every(task)[0], every(again)[0])
    assert not torch.equal(every(task)[0], every(other)[0])
    assert task.spec.labels == EXPRESSIONS
    assert task.stand_in
    shares = torch.bincount(every(task)[1], minlength=6) / 480
    assert (shares - torch.tensor([0.4, 0.2, 0.1, 0.1, 0.1, 0.1])).abs().max() < 0.06


def test_drawing_repeats_and_shows_the_expression():
    images, targets, people = draw_faces(15, 20, 3)
    for one, other in zip((images, targets, people), draw_faces(15, 20, 3), strict=True):
        assert np.array_equal(one, other)
    assert images.dtype == np.uint8
    mouths = images[:, 34:44, 18:30] / images[:, 24:28, 18:30].mean((1, 2), keepdims=True).clip(1)
    dark = (mouths < 0.5).mean((1, 2))
    assert dark[targets == EXPRESSIONS.index("scream")].mean() > 2 * dark[targets == 0].mean()


def test_synthetic_says_that_it_is_a_stand_in(caplog):
    FacialExpression(identities=3, images_per_identity=2, val_identities=1, test_identities=1)
    assert len(warnings(caplog)) == 1
    assert "do not compare with table 3" in warnings(caplog)[0]


@pytest.mark.parametrize(("name", "value"), [
    ("layout", "faces"), ("val_identities", 0), ("test_identities", -1), ("identities", 40),
    ("images_per_identity", 0), ("max_unreadable", 1.5), ("max_unreadable", float("nan")),
    ("shift", -1), ("seed", -1), ("cameras", []), ("cameras", ["front"]),
])  # fmt: skip
def test_settings_out_of_range_are_named_first(name, value):
    small = {"identities": 3, "images_per_identity": 1, "val_identities": 1, "test_identities": 1}
    if name == "identities":
        small.update(val_identities=20, test_identities=20)
    with pytest.raises(ValueError, match=f"^{name} ") as caught:
        FacialExpression(**{**small, name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["multi_pie", "folders"])
def test_missing_data_say_what_was_expected_where(tmp_path, layout):
    expected = "session01" if layout == "multi_pie" else "CLASS/PERSON/FILE"
    assert expected in refusal(None, layout)
    assert expected in refusal(tmp_path / "nowhere", layout)
    message = refusal(save(tmp_path / "image.png", 0), layout)
    assert expected in message
    assert "is a file" in message
    (tmp_path / "empty").mkdir()
    assert "empty" in refusal(tmp_path / "empty", layout)


def test_missing_multi_pie_points_to_the_drawn_faces(tmp_path):
    for message in (refusal(None), refusal(tmp_path / "nowhere")):
        assert "licensed" in message
        assert "task.layout=synthetic" in message


@pytest.mark.parametrize("what", ["folder", "landmarks"])
def test_data_that_may_not_be_read_are_named(folders, monkeypatch, what):
    if what == "folder":

        def forbidden(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(face_folders.os, "scandir", forbidden)
        named = folders
    else:
        named = folders / "landmarks.csv"
        named.mkdir()
    assert f"cannot read '{named}': " in refusal(folders, "folders")


def test_missing_camera_lists_those_that_exist(multi_pie):
    message = refusal(multi_pie, cameras=["05_1", "19_1"])
    assert "no images of 19_1" in message
    assert "05_0, 05_1, 08_1, 14_0" in message


def test_cache_is_used_until_a_file_changes(folders, monkeypatch):
    reads = []

    def counted(photos):
        reads.append(len(photos.found))
        return face_folders.read_photos(photos)

    monkeypatch.setattr(facial_expression, "read_photos", counted)
    first = every(load(folders, "folders"))
    again = every(load(folders, "folders"))
    assert reads == [32]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    save(folders / "happy" / "p0" / "c.png", 9)
    assert len(every(load(folders, "folders"))[1]) == 33
    save(folders / "happy" / "p0" / "c.png", 99)
    assert 99 in every(load(folders, "folders"))[0]
    (folders / "landmarks.csv").write_text(f"{HEADER}\nhappy/p0/c.png,20,20,40,20,30,33\n")
    load(folders, "folders")
    load(folders, "folders", cache_dir=str(folders.parent / "elsewhere"))
    assert reads == [32, 33, 33, 33, 33]


@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "lacking"])
def test_damaged_cache_is_made_again(folders, caplog, damage):
    wanted = every(load(folders, "folders"))
    (file,) = cache_dir("faces").iterdir()
    whole = file.read_bytes()
    if damage == "lacking":
        with file.open("wb") as opened:
            np.savez(opened, images=np.zeros(3))
    else:
        file.write_bytes({"truncated": whole[:-500], "empty": b"", "other": b"hello"}[damage])
    caplog.clear()
    again = every(load(folders, "folders"))
    assert all(torch.equal(a, b) for a, b in zip(wanted, again, strict=True))
    assert any("is damaged and is made again" in line for line in warnings(caplog))
    assert [path.name for path in cache_dir("faces").iterdir()] == [file.name]
    assert file.read_bytes() == whole


def test_cache_that_cannot_be_written_names_its_folder(folders, tmp_path, monkeypatch):
    in_the_way = save(tmp_path / "file.png", 0)
    message = refusal(folders, "folders", cache_dir=str(in_the_way / "faces"))
    assert str(in_the_way / "faces") in message
    assert "task.cache_dir=DIR" in message

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    message = refusal(folders, "folders")
    assert "No space left on device" in message and "task.cache_dir=DIR" in message
    assert list(cache_dir("faces").iterdir()) == []


def test_interrupted_reading_leaves_no_file(folders, monkeypatch):
    def interrupted(photos):
        raise KeyboardInterrupt

    monkeypatch.setattr(facial_expression, "read_photos", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(folders, "folders")
    assert list(cache_dir("faces").iterdir()) == []


def damage_some(folders: Path) -> None:
    png = folders / "sad" / "p3" / "deep" / "a.png"
    (folders / "happy" / "p1" / "b.JPG").write_bytes(b"")
    (folders / "happy" / "p2" / "b.JPG").write_text("no image")
    png.write_bytes(png.read_bytes()[:50])


def test_few_unreadable_images_are_left_out_and_named_every_time(folders, caplog):
    damage_some(folders)
    for _ in range(2):
        caplog.clear()
        inputs, targets = every(load(folders, "folders", max_unreadable=0.1))
        assert len(inputs) == 29
        assert torch.equal(inputs[:, 24, 24].long() // 100, targets)
        (line,) = [line for line in warnings(caplog) if "cannot be read" in line]
        for file in ("happy/p1/b.JPG", "happy/p2/b.JPG", "sad/p3/deep/a.png"):
            assert file in line


def test_too_many_unreadable_images_are_refused_even_from_the_cache(folders):
    damage_some(folders)
    for _ in range(2):
        message = refusal(folders, "folders", max_unreadable=0.09)
        assert "3 of 32 images" in message
        assert "'happy/p1/b.JPG'" in message
        load(folders, "folders", max_unreadable=0.1)


def test_decompression_bomb_is_unreadable(folders, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    save(folders / "sad" / "p3" / "b.JPG", 0, size=(75, 75))
    save(folders / "sad" / "p3" / "deep" / "a.png", 0, size=(150, 150))
    assert "2 of 32 images" in refusal(folders, "folders")


def test_nothing_readable_is_one_line(folders):
    for file in folders.rglob("*.*"):
        file.write_bytes(b"")
    assert "split can be read" in refusal(folders, "folders", max_unreadable=1)


def test_cache_follows_the_environment(monkeypatch, tmp_path):
    assert cache_dir("faces") == tmp_path / "cache" / "fwrnn" / "faces"
    monkeypatch.delenv("XDG_CACHE_HOME")
    for name in ("HOME", "USERPROFILE"):  # the latter on Windows
        monkeypatch.setenv(name, str(tmp_path))
    assert cache_dir("mnist") == tmp_path / ".cache" / "fwrnn" / "mnist"


def test_a_folder_that_is_not_looked_at_is_told_of(tmp_path, caplog):
    few = {"val_identities": 1, "test_identities": 1, "identities": 3, "images_per_identity": 1}
    FacialExpression(data_dir=str(tmp_path), cache_dir=str(tmp_path), **few)
    assert "data_dir is not looked at" in caplog.text
