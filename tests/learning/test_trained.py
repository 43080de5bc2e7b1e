"""``fwrnn.load``: trained networks from Python, those that ship among them."""

import json
import shutil

import pytest
import torch

import fwrnn
from fwrnn.commands.train import resumed_config, train
from fwrnn.errors import UserError
from fwrnn.learning.assembly import assemble, config_of, load_run
from fwrnn.learning.retest import evaluated
from fwrnn.learning.run_folder import RunFolder
from fwrnn.learning.shipped import FOLDER, shipped
from fwrnn.learning.supervised import Supervised
from fwrnn.learning.supervised.scoring import evaluate
from fwrnn.machine import memory
from fwrnn.reading import read_yaml
from tests.commands.compose import compose
from tests.conftest import TINY


@pytest.mark.parametrize("name", shipped())
def test_networks_that_ship_have_the_error_that_was_recorded(name):
    result = evaluated(name, device="cpu")[0]
    recorded = json.loads((FOLDER / name / "metrics.json").read_text())
    assert result["reproduced"]
    assert result["error"] == recorded["test_error"]
    assert result["loss"] == pytest.approx(recorded["test_loss"], rel=1e-3)


@pytest.mark.parametrize("name", shipped())
def test_networks_that_ship_are_small_and_plain(name):
    file = FOLDER / name / "checkpoints" / "best.pt"
    assert file.stat().st_size < 1_000_000
    model = torch.load(file, weights_only=True)["model"]
    assert all(weights.dtype == torch.float32 for weights in model.values())


def test_broken_weights_are_a_users_error(tmp_path):
    shutil.copytree(FOLDER / "retrieval", tmp_path, dirs_exist_ok=True)
    torch.save({"format": 1, "model": print}, tmp_path / "checkpoints" / "best.pt")
    with pytest.raises(UserError, match="is not a checkpoint of fwrnn, or is broken"):
        fwrnn.load(tmp_path)


def test_strings_are_answered_one_by_one_or_together_in_their_order():
    trained = fwrnn.load("retrieval")
    answer = trained("c9k8j3f1??c")
    assert answer.label == "9"
    assert answer.confidence == answer.probabilities["9"]
    assert sum(answer.probabilities.values()) == pytest.approx(1)
    questions = ["c9k8j3f1??c", "a1??a", "c9k8j3f1??k", "b2??b"]
    assert [answer.label for answer in trained(questions)] == ["9", "1", "8", "2"]
    assert trained([]) == []
    assert [answer.label for answer in trained(text for text in questions[:2])] == ["9", "1"]
    with pytest.raises(ValueError, match="expected a key"):
        trained("9")
    with pytest.raises(TypeError, match="reads text"):
        trained([1, 2])  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_loading_leaves_random_numbers_and_threads_alone(tmp_path):
    train(compose(*TINY, "threads=1"), tmp_path)
    torch.set_num_threads(2)
    state = torch.random.get_rng_state()
    trained = fwrnn.load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == 2
    assert not trained.model.training
    (_, _, task, model, _), _ = load_run(tmp_path, "cpu")
    assert evaluate(trained.model, task.split("test")) == evaluate(model, task.split("test"))


def test_images_are_answered_one_by_one_or_together(tmp_path, monkeypatch):
    from tests.tasks.mnist import small_mnist, write

    write(tmp_path / "mnist", small_mnist(monkeypatch))
    settings = ["task=mnist_glimpses", "model=convnet", "model.hidden_size=8", "threads=1"]
    settings += [f"task.data_dir={tmp_path / 'mnist'}", "trainer.max_updates=2"]
    train(compose(*settings), tmp_path / "run")
    trained = fwrnn.load(tmp_path / "run")
    images = trained.task.split("test").inputs[:3]
    answers = trained(images)
    expected = trained.model(images).argmax(-1).tolist()
    assert [int(answer.label) for answer in answers] == expected
    assert trained(images[0].numpy()).label == answers[0].label
    with pytest.raises(TypeError, match="got torch.float32"):
        trained(images.float())
    with pytest.raises(ValueError, match=r"got \(3, 27, 28\)"):
        trained(images[:, 1:])


def test_players_say_what_to_call_instead(tmp_path):
    settings = ["task=catch", "task.size=6", "model.hidden_size=8", "trainer.max_updates=1"]
    settings += ["trainer.games=4", "trainer.val_games=4", "trainer.test_games=4"]
    train(compose(*settings), tmp_path)
    with pytest.raises(TypeError, match=r"trained\.model\(screens, state\)"):
        fwrnn.load(tmp_path)("a1??a")


def test_an_unknown_run_is_told_what_ships():
    with pytest.raises(UserError, match="did you mean 'retrieval'"):
        fwrnn.load("retreival")


def test_what_a_strangers_run_says_of_a_cache_is_not_written_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["task=facial_expression", "model=multilevel", "task.cache_dir=there"]
    RunFolder("run").write_config(compose(*words))
    saved = RunFolder("run").read_config()
    assert config_of("run").task.cache_dir is None
    assert resumed_config(saved, []).task.cache_dir is None
    assert resumed_config(saved, ["task.cache_dir=here"]).task.cache_dir == "here"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / f"{0:032x}.npz").touch()  # somebody trained with it here
    assert config_of("run").task.cache_dir == resumed_config(saved, []).task.cache_dir == "there"


@pytest.fixture
def made_on(monkeypatch) -> list[str]:
    """The devices that networks are made on: on "meta" they take no memory."""
    devices, network = [], Supervised.network

    def recorded(self, model, spec):
        devices.append(torch.empty(0).device.type)
        return network(self, model, spec)

    monkeypatch.setattr(Supervised, "network", recorded)
    return devices


@pytest.mark.parametrize("key", ["hidden_size", "embedding_size"])
def test_weights_of_another_size_are_refused_before_the_model_takes_memory(tmp_path, key, made_on):
    train(compose(*TINY, "model=lstm", "trainer.max_updates=1"), tmp_path)
    assert made_on == ["meta", "cpu"]
    size = read_yaml(tmp_path / "config.yaml")["model"][key]
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace(f"{key}: {size}", f"{key}: {size + 1}"))
    with pytest.raises(UserError, match=r"best\.pt does not fit the model of .*config\.yaml"):
        load_run(tmp_path)
    assert made_on == ["meta", "cpu", "meta"]


@pytest.mark.skipif(memory() is None, reason="this system does not tell how much there is")
def test_a_model_that_is_larger_than_the_memory_is_refused_before_it_takes_it(made_on):
    with pytest.raises(UserError, match=r"it has [\d,]+ GiB of weights"):
        assemble(compose(*TINY, "model=lstm", "model.hidden_size=3000000"))
    assert made_on == ["meta"]
