"""MNIST's files, whole and broken, found and downloaded; the splits; the augmentation."""

import gzip
import io
from http.client import IncompleteRead
from urllib.error import URLError

import numpy as np
import pytest
import torch

from fwrnn.errors import UserError
from fwrnn.tasks import mnist_files
from fwrnn.tasks.images import moved
from fwrnn.tasks.mnist_files import load_mnist
from fwrnn.tasks.mnist_glimpses import MnistGlimpses
from tests.tasks.mnist import TEST, TRAIN, VALIDATION, small_mnist, write

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def contents(monkeypatch):
    return small_mnist(monkeypatch)


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """A cache of the test's own, and no way out; ``requests`` counts what was asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    requests = []

    def refuse(request, timeout):
        requests.append(request)
        raise URLError("no route to host")

    monkeypatch.setattr(mnist_files, "urlopen", refuse)
    return requests


class Answer(io.BytesIO):
    """A mirror's, which ends in an ``error`` if there is one."""

    length, error = None, None

    def read(self, size=-1):
        found = super().read(size)
        if self.error and not found:
            raise self.error
        return found


def serve(monkeypatch, contents, spoil=lambda url, packed: packed):
    """Mirrors that have the files; ``spoil`` changes what they send."""

    def send(request, timeout):
        url = request.full_url
        name = url.rpartition("/")[2].removesuffix(".gz")
        return Answer(spoil(url, gzip.compress(contents[name])))

    monkeypatch.setattr(mnist_files, "urlopen", send)


def break_off(monkeypatch, error):
    """Mirrors that send a part and then fail."""
    answer = type("Broken", (Answer,), {"error": error})
    monkeypatch.setattr(mnist_files, "urlopen", lambda request, timeout: answer(b"half"))


@pytest.mark.parametrize("gzipped", [False, True])
def test_files_are_read_gzipped_or_not(tmp_path, contents, gzipped):
    write(tmp_path / "data", contents, gzipped)
    training, test = load_mnist(str(tmp_path / "data"))
    assert training.inputs.shape == (TRAIN, 28, 28)
    assert training.inputs.dtype == torch.uint8
    assert training.inputs.numpy().tobytes() == contents[IMAGES][16:]
    assert training.targets.dtype == torch.int64
    assert test.targets.numpy().astype(np.uint8).tobytes() == contents["t10k-labels-idx1-ubyte"][8:]


def test_last_training_images_are_for_validation(tmp_path, contents):
    write(tmp_path / "data", contents)
    task = MnistGlimpses(data_dir=str(tmp_path / "data"))
    sizes = [len(task.split(name).targets) for name in ("train", "val", "test")]
    assert sizes == [TRAIN - VALIDATION, VALIDATION, TEST]
    training, _ = load_mnist(str(tmp_path / "data"))
    assert torch.equal(task.split("val").inputs, training.inputs[-VALIDATION:])
    assert task.held_out
    assert not task.resample
    everything = MnistGlimpses(data_dir=str(tmp_path / "data"), train_on_all=True)
    assert torch.equal(everything.split("train").inputs, training.inputs)
    assert not everything.held_out


def test_digits_need_no_files():
    pytest.importorskip("sklearn")
    task = MnistGlimpses("digits")
    splits = [task.split(name) for name in ("train", "val", "test")]
    assert [len(split.targets) for split in splits] == [1257, 180, 360]
    images = torch.cat([split.inputs for split in splits])
    assert images.shape == (1797, 8, 8)
    assert images.max() == 255
    assert len({image.numpy().tobytes() for image in images}) > 1790
    assert torch.equal(MnistGlimpses("digits", seed=1).split("test").inputs, splits[2].inputs)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(UserError, match=r"needs scikit-learn.*\[digits\]"):
        MnistGlimpses("digits")


@pytest.mark.parametrize(("spoil", "words"), [
    (lambda c: c[IMAGES][:-5], "has .* bytes where its header promises"),
    (lambda c: c[IMAGES] + b"x", "has .* bytes where its header promises"),
    (lambda c: c[LABELS], "holds labels where an IDX file of images was expected"),
    (lambda c: c["t10k-images-idx3-ubyte"], "but not MNIST's train-images"),
    (lambda c: b"", "is empty"),
    (lambda c: c[IMAGES][:9], "ends inside its header"),
    (lambda c: b"\x00\x00\x0d\x03" + c[IMAGES][4:], "begins with 00000d03"),
    (lambda c: b"<html>not found</html>", "begins with 3c68746d"),
    (lambda c: gzip.compress(c[IMAGES])[:-20], "damaged or incomplete gzip"),
    (lambda c: c[IMAGES][:-1] + bytes([c[IMAGES][-1] ^ 1]), "but not MNIST's train-images"),
    (lambda c: c[IMAGES][:4] + b"\xff" * 12 + c[IMAGES][16:], "header promises"),
])  # fmt: skip
def test_broken_file_is_one_line_and_stays_untouched(tmp_path, contents, no_network, spoil, words):
    broken = spoil(contents)
    write(tmp_path / "data", contents | {IMAGES: broken})
    with pytest.raises(UserError, match=words) as caught:
        load_mnist(str(tmp_path / "data"))
    assert IMAGES in str(caught.value)
    assert (tmp_path / "data" / IMAGES).read_bytes() == broken
    assert not no_network


def test_missing_files_are_downloaded_once(contents, monkeypatch, tmp_path):
    serve(monkeypatch, contents)
    first, _ = load_mnist()
    folder = tmp_path / "cache" / "fwrnn" / "mnist"
    assert {path.name for path in folder.iterdir()} == {f"{name}.gz" for name in contents}
    monkeypatch.setattr(mnist_files, "urlopen", None)
    assert torch.equal(load_mnist()[0].inputs, first.inputs)


@pytest.mark.parametrize("spoil", [
    lambda url, packed: packed[:-30],
    lambda url, packed: b"",
    lambda url, packed: b"<html>please log in</html>",
    lambda url, packed: gzip.compress(gzip.decompress(packed)[:-1] + b"x"),
])  # fmt: skip
def test_corrupt_download_is_never_taken_for_data(contents, monkeypatch, tmp_path, spoil):
    serve(monkeypatch, contents, spoil)
    with pytest.raises(UserError, match=r"could not be downloaded.*Put train-images"):
        load_mnist()
    assert not list((tmp_path / "cache").rglob("*ubyte*"))


def test_next_mirror_is_asked_when_one_fails(contents, monkeypatch):
    first = mnist_files.MIRRORS[0]
    serve(monkeypatch, contents, lambda url, p: b"broken" if url.startswith(first) else p)
    assert len(load_mnist()[0].targets) == TRAIN


@pytest.mark.parametrize(
    "error", [URLError("no route"), TimeoutError("timed out"), IncompleteRead(b"x", 9)]
)
def test_without_network_it_says_which_files_to_put_where(monkeypatch, tmp_path, error):
    def fail(request, timeout):
        assert timeout
        raise error

    monkeypatch.setattr(mnist_files, "urlopen", fail)
    with pytest.raises(UserError) as caught:
        load_mnist()
    message = str(caught.value)
    for part in (*mnist_files.MD5, str(tmp_path / "cache"), "task.data_dir=DIR", "digits"):
        assert part in message
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_interrupted_download_leaves_nothing(contents, monkeypatch, tmp_path):
    break_off(monkeypatch, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        load_mnist()
    assert not list((tmp_path / "cache" / "fwrnn" / "mnist").iterdir())


def test_broken_file_in_the_cache_is_downloaded_again(contents, monkeypatch, tmp_path):
    folder = tmp_path / "cache" / "fwrnn" / "mnist"
    write(folder, contents, gzipped=True)
    (folder / f"{IMAGES}.gz").write_bytes(b"rubbish")
    serve(monkeypatch, contents)
    assert len(load_mnist()[0].targets) == TRAIN
    assert gzip.decompress((folder / f"{IMAGES}.gz").read_bytes()) == contents[IMAGES]


def test_unwritable_cache_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "cache").write_text("a file in the place of the folder")
    with pytest.raises(UserError, match=r"cannot write to .*cache.*task\.data_dir=DIR"):
        load_mnist()


def test_full_disk_is_one_line_and_leaves_nothing(monkeypatch, tmp_path):
    break_off(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(UserError, match="No space left on device"):
        load_mnist()
    assert not list((tmp_path / "cache" / "fwrnn" / "mnist").iterdir())


def test_missing_folder_is_not_made_up(tmp_path, no_network):
    with pytest.raises(UserError, match="no folder"):
        load_mnist(str(tmp_path / "nowhere"))
    assert not no_network
    assert not (tmp_path / "nowhere").exists()


def test_augmentation_changes_training_images_every_epoch_and_repeats(tmp_path, contents):
    write(tmp_path / "data", contents)
    task = MnistGlimpses(data_dir=str(tmp_path / "data"), shift=2, rotation=10, seed=3)
    plain = MnistGlimpses(data_dir=str(tmp_path / "data"))
    assert task.resample
    first, second = (task.split("train", epoch).inputs for epoch in (0, 1))
    assert first.dtype == torch.uint8
    assert not torch.equal(first, second)
    assert torch.equal(first, task.split("train", 0).inputs)
    assert torch.equal(task.split("train", 0).targets, plain.split("train").targets)
    for name in ("val", "test"):
        assert torch.equal(task.split(name, 1).inputs, plain.split(name).inputs)


def test_images_move_by_no_more_than_asked():
    images = torch.zeros(500, 28, 28, dtype=torch.uint8)
    images[:, 14, 14] = 255
    assert torch.equal(moved(images, 0, 0, np.random.default_rng(0)), images)
    shifted = moved(images, 2, 0, np.random.default_rng(0)).double()
    rows = torch.arange(28.0).double()
    centres = (shifted.sum(2) * rows).sum(1) / shifted.sum((1, 2)) - 14
    assert centres.abs().max() <= 2.01
    assert centres.abs().max() > 1.5
    assert centres.std() == pytest.approx(2 / 3**0.5, abs=0.1)


def test_images_turn_by_no_more_than_asked():
    images = torch.zeros(500, 29, 29, dtype=torch.uint8)
    images[:, 14, 24] = 255  # ten pixels right of the centre
    turned = moved(images, 0, 30, np.random.default_rng(0)).double()
    grid = torch.arange(29.0).double() - 14
    total = turned.sum((1, 2))
    y, x = ((turned.sum(2) * grid).sum(1) / total), ((turned.sum(1) * grid).sum(1) / total)
    angles = torch.rad2deg(torch.atan2(y, x))
    assert angles.abs().max() <= 30.5
    assert angles.abs().max() > 25
    assert ((x**2 + y**2).sqrt() - 10).abs().max() < 0.5


@pytest.mark.parametrize(("settings", "words"), [
    ({"shift": -1}, "shift must be 0 or more, got -1"),
    ({"rotation": float("nan")}, "rotation must be 0 or more, got nan"),
    ({"dataset": "cifar"}, "dataset must be one of 'mnist', 'digits'"),
])  # fmt: skip
def test_settings_out_of_range_say_so(tmp_path, contents, settings, words):
    write(tmp_path / "data", contents)
    with pytest.raises(ValueError, match=words):
        MnistGlimpses(**{"data_dir": str(tmp_path / "data"), **settings})


def test_a_folder_that_is_not_looked_at_is_told_of(tmp_path, caplog):
    pytest.importorskip("sklearn")
    MnistGlimpses("digits", data_dir=str(tmp_path))
    assert "data_dir is not looked at" in caplog.text
