"""The actor-critic: returns by hand, play by hand, learning a small game, stopping and going on."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import VectorEnv

from fwrnn.cli import main
from fwrnn.commands.train import train
from fwrnn.environments.catch import CatchVectorEnv
from fwrnn.errors import Interrupted, RunFailed, UserError
from fwrnn.learning.assembly import assemble
from fwrnn.learning.games import a3c, frames_to
from fwrnn.learning.games.actor_critic import (
    A2CTrainer,
    actor_critic_loss,
    entropy_cost,
    returns,
)
from fwrnn.learning.games.play import Episodes, draw, evaluate_play, play, wilson
from fwrnn.learning.kinds import Question
from fwrnn.learning.retest import evaluated
from fwrnn.tasks.schema import CatchConfig
from tests.commands.compose import compose
from tests.signals import press

CPU = torch.device("cpu")
SMALL = ["task=catch", "task.size=5", "model.hidden_size=16", "model.encoding_size=16", "threads=1"]
SMALL += ["trainer.max_updates=6", "trainer.games=8", "trainer.val_games=20"]
SMALL += ["trainer.test_games=50", "trainer.evaluate_every=2", "trainer.log_every=2"]


@pytest.mark.parametrize("n_steps", [None, 1, 3, 9])
def test_returns_are_the_sums_of_what_follows(n_steps):
    length, count, discount = 5, 4, 0.9
    rewards, values = torch.randn(2, length, count, dtype=torch.float64)
    ends = [5, 3, 1, 4]
    alive = torch.arange(length).unsqueeze(1) < torch.tensor(ends)
    found = returns(rewards, values, alive, discount, n_steps)
    steps = length if n_steps is None else n_steps
    for k, end in enumerate(ends):
        for t in range(end):
            last = min(t + steps, end)
            wanted = sum(discount ** (i - t) * rewards[i, k] for i in range(t, last))
            if t + steps < end:
                wanted += discount**steps * values[t + steps, k]
            torch.testing.assert_close(found[t, k], wanted)


class Countdown(VectorEnv):
    """Game k ends after k + 1 moves and rewards every move with its action."""

    def __init__(self, count):
        self.num_envs = count
        self.single_action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        self.left = np.arange(1, self.num_envs + 1)
        return np.zeros((self.num_envs, 3, 3), dtype=np.uint8), {}

    def step(self, actions):
        self.left = self.left - 1
        ended, never = self.left == 0, np.zeros(self.num_envs, dtype=bool)
        screens = np.zeros((self.num_envs, 3, 3), dtype=np.uint8)
        return screens, actions.astype(float), ended, never, {}


def test_games_of_different_lengths_count_up_to_their_ends():
    def model(screens, state):
        logits = torch.tensor([0.0, 1.0, 5.0]).expand(1, screens.shape[1], 3)
        return logits, None, state

    episodes = play(model, Countdown(4), 0, CPU, greedy=True)
    assert episodes.alive.sum(0).tolist() == [1, 2, 3, 4]
    assert episodes.scores.tolist() == [2, 4, 6, 8]
    assert episodes.frames == 10 + 4


def test_actions_are_drawn_by_their_probabilities():
    logits = torch.tensor([0.1, 0.7, 0.2]).log().expand(20_000, 3)
    shares = torch.bincount(draw(logits), minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.7, 0.2]), atol=0.015, rtol=0)


@pytest.mark.parametrize("core", ["fast_weights", "lstm", "rnn", "associative_lstm"])
def test_update_sees_the_policy_that_played(core):
    _, _, task, model, _ = assemble(compose(*SMALL, f"model={core}", "task.size=8"))
    games = task.games(6)
    seen, state = [], None
    torch.manual_seed(1)
    episodes = play(model, games, 0, CPU)
    for screen in episodes.screens:
        step = model(screen.unsqueeze(0), state)
        state = step.state
        seen.append(step)
    whole = model(episodes.screens)
    torch.testing.assert_close(torch.cat([step.logits for step in seen]), whole.logits)
    torch.testing.assert_close(torch.cat([step.values for step in seen]), whole.values)


def test_loss_raises_what_was_rewarded_and_spreads_what_is_sure():
    config = compose(*SMALL, "trainer.discount=1.0").trainer
    logits = torch.tensor([[[0.0, 0.0, 2.0]], [[1.0, 0.0, 0.0]]], requires_grad=True)
    values = torch.tensor([[0.5], [0.25]], requires_grad=True)
    episodes = Episodes(
        torch.zeros(2, 1, 3, 3),
        torch.tensor([[2], [0]]),
        torch.tensor([[0.0], [1.0]]),
        torch.ones(2, 1, dtype=torch.bool),
    )
    losses = actor_critic_loss(lambda screens: (logits, values, None), episodes, config, 0.1)
    log_policy = logits.detach().log_softmax(-1)
    taken = torch.stack([log_policy[0, 0, 2], log_policy[1, 0, 0]])
    errors = torch.tensor([0.5, 0.75])
    entropy = -(log_policy.exp() * log_policy).sum() / 2
    wanted = -(taken * errors).mean() + 0.5 * errors.square().mean() - 0.1 * entropy
    torch.testing.assert_close(losses.loss, wanted)
    losses.loss.backward()
    assert logits.grad[0, 0, 2] < 0 and logits.grad[1, 0, 0] < 0
    torch.testing.assert_close(values.grad.flatten(), -0.5 * errors)


def test_entropy_cost_falls_to_nothing():
    config = compose(*SMALL, "trainer.max_updates=100", "trainer.entropy_until=0.5").trainer
    first = config.entropy_cost
    costs = [entropy_cost(update, config) for update in (0, 25, 50, 99)]
    assert costs == pytest.approx([first, first / 2, 0, 0])
    config.entropy_until = None
    assert entropy_cost(99, config) == first


def test_interval_is_wilsons():
    assert wilson(1.0, 1000, -1, 1) == pytest.approx((0.99235, 1.0), abs=1e-5)
    assert wilson(0.0, 10, -1, 1) == pytest.approx((-0.52675, 0.52675), abs=1e-4)


def test_frames_to_a_reward_that_stays():
    curve = [{"frames": k, "val_reward": r} for k, r in enumerate([0, 0.95, 0.9, 0.92, 1])]
    assert frames_to(curve, 0.9) == 3
    assert frames_to(curve[:3], 0.9) is None


def test_learns_a_small_game_and_evaluates_as_recorded(tmp_path, capsys):
    settings = [*SMALL, "task.visible_frames=2", "trainer.max_updates=400", "trainer.games=32"]
    settings += ["trainer.learning_rate=0.01", "trainer.evaluate_every=100", "model.fast_lr=0.1"]
    metrics = train(compose(*settings), tmp_path)
    assert metrics["test_reward"] > 0.8
    assert metrics["test_reward_low"] < metrics["test_reward"] <= metrics["test_reward_high"]
    assert metrics["test_won"] == pytest.approx((1 + metrics["test_reward"]) / 2)
    assert metrics["frames"] == 400 * 32 * 5
    assert (tmp_path / "pictures" / "games.gif").read_bytes().startswith(b"GIF")
    assert main(["evaluate", str(tmp_path)]) == 0
    assert "as recorded, exactly" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path), "--split", "val"]) == 0
    assert "as recorded, exactly" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path), "--games", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["games"] == 10 and "reproduced" not in found


def interrupted_after(trainer: type, update: int, patch) -> None:
    plain = trainer.update

    def interrupting(self):
        if self.progress.update == update:  # as a terminal sends it: to all of them
            for worker in torch.multiprocessing.active_children() if os.name == "posix" else ():
                os.kill(worker.pid, signal.SIGINT)
            press()
        return plain(self)

    patch.setattr(trainer, "update", interrupting)


def test_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch):
    straight = train(compose(*SMALL), tmp_path / "straight")
    with monkeypatch.context() as patch:
        interrupted_after(A2CTrainer, 3, patch)
        with pytest.raises(Interrupted):
            train(compose(*SMALL), tmp_path / "early")
    assert main(["train", f"resume={tmp_path / 'early'}"]) == 0
    resumed = json.loads((tmp_path / "early" / "metrics.json").read_text())
    timed = ("seconds", "updates_per_second", "frames_per_second")
    assert {k: v for k, v in resumed.items() if k not in timed} == {
        k: v for k, v in straight.items() if k not in timed
    }
    curves = [(tmp_path / run / "curve.csv").read_text() for run in ("early", "straight")]
    rows = [[row.rsplit(",", 1)[0] for row in curve.split("\n")] for curve in curves]
    assert rows[0] == rows[1]


def test_a_core_with_dropout_of_its_own_is_tested_without():
    _, _, task, model, device = assemble(compose(*SMALL, "task.visible_frames=5"))
    model.policy = torch.nn.Sequential(torch.nn.Dropout(0.9), model.policy)
    found = {evaluate_play(model.train(), task, "val", 200, device) for _ in range(3)}
    assert len(found) == 1 and model.training
    assert found == {evaluate_play(model.eval(), task, "val", 200, device)}


def test_every_update_plays_other_games(tmp_path, monkeypatch):
    seeds = []
    plain = CatchVectorEnv.reset

    def watched(self, *, seed=None, options=None):
        seeds.append(seed)
        return plain(self, seed=seed, options=options)

    monkeypatch.setattr(CatchVectorEnv, "reset", watched)
    _, _, task, model, device = assemble(compose(*SMALL))
    trainer = A2CTrainer(model, task, compose(*SMALL).trainer, 0, device, tmp_path)
    for _ in range(5):
        trainer.update()
        trainer.progress.update += 1
    assert len(set(seeds)) == 5


def test_policy_that_is_no_number_is_not_kept(tmp_path):
    broken = ["model=lstm", "trainer.learning_rate=1e38", "trainer.clip_norm=null"]
    with pytest.raises(RunFailed, match="validation reward is nan after update 1: .* of update 0"):
        train(compose(*SMALL, *broken, "trainer.max_updates=1"), tmp_path)
    assert not (tmp_path / "checkpoints" / "best.pt").exists()
    assert not (tmp_path / "metrics.json").exists()


def test_stops_when_solved(tmp_path):
    metrics = train(compose(*SMALL, "trainer.solved_reward=-1.0"), tmp_path)
    assert metrics["stopped"] == "solved" and metrics["updates"] == 2


def test_stops_where_rewards_only_stay_the_same(tmp_path):
    words = ["trainer.learning_rate=1e-30", "trainer.patience=2", "trainer.max_updates=20"]
    metrics = train(compose(*SMALL, *words), tmp_path)
    assert metrics["stopped"] == "no progress" and metrics["updates"] == 4
    assert metrics["best_update"] == 4  # of equal ones the later


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=catch", "trainer=supervised"], "choose trainer=a2c or a3c"),
        (["task=catch", "model=irnn", "trainer=supervised"], "choose trainer=a2c or a3c"),
        (["trainer=a2c"], "choose trainer=supervised"),
        (["task=catch", "model=multilevel"], "looks at images, and task catch shows screens"),
        (
            ["task=catch", "model=convnet"],
            "model convnet looks at images, and task catch shows screens",
        ),
        (["task=catch", "model.head_dropout=0.1"], "head_dropout must be 0 for games"),
        (["task=catch", "task.size=2"], "task.size must be 3 or more"),
        (["task=catch", "task.visible_frames=17"], "task.visible_frames must lie in 1"),
        (["task=catch", "trainer.games=0"], "games must be 1 or more"),
        (["task=catch", "trainer.discount=1.5"], "discount must lie in"),
        (["task=catch", "trainer=a3c", "trainer.workers=0"], "workers must be 1 or more"),
        (["task=catch", "trainer.entropy_cost=-1"], "entropy_cost must be 0 or more"),
        (["model.embedding_size=null"], "embedding_size must be a number"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(words, message, tmp_path, capsys):
    assert main(["train", *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def a3c_config(*more):
    return compose(*SMALL, "trainer=a3c", "trainer.games=4", *more)


@pytest.mark.slow
def test_asynchronous_workers_learn_a_small_game_and_can_be_stopped(tmp_path, monkeypatch):
    # A semaphore is a file of the system, which stays when all processes are killed together.
    if os.name == "posix":
        monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", lambda *a, **k: 1 / 0)
    settings = ["task.visible_frames=2", "trainer.max_updates=600", "trainer.games=16"]
    settings += ["trainer.learning_rate=0.01", "trainer.evaluate_every=100", "model.fast_lr=0.1"]
    with monkeypatch.context() as patch:
        interrupted_after(a3c.A3CTrainer, 120, patch)
        with pytest.raises(Interrupted):
            train(a3c_config("trainer.workers=1", *settings), tmp_path)
    assert not torch.multiprocessing.active_children()
    metrics = train(a3c_config("trainer.workers=2", *settings), tmp_path, resume=True)
    assert metrics["test_reward"] > 0.7
    recorded = evaluated(str(tmp_path), Question("val"))[0]
    assert recorded["reproduced"]  # the weights that were validated are those that were kept
    assert metrics["frames"] == 600 * 16 * 5
    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    steps = {state["step"].item() for state in last["optimizer"]["state"].values()}
    assert len(steps) == 1 and steps.pop() >= 600  # none was lost


@pytest.mark.slow
def test_workers_do_not_run_ahead_of_a_validation(tmp_path, monkeypatch):
    ahead, settle = [], a3c.A3CTrainer.settle

    def watched(self):
        time.sleep(0.2)  # as validations, drawings and checkpoints take
        settle(self)
        taken = next(iter(self.optimizer.state.values()))["step"].item()
        ahead.append(taken - self.progress.update)

    monkeypatch.setattr(a3c.A3CTrainer, "settle", watched)
    few = ["trainer.max_updates=60", "trainer.games=1", "trainer.evaluate_every=10"]
    train(a3c_config("trainer.workers=1", *few), tmp_path)
    assert len(ahead) == 6 and min(ahead) >= 0 and max(ahead) <= 1


class Broken:
    """A task whose games break after the first validation."""

    def __init__(self, task, how):
        self.task, self.how, self.spec = task, how, task.spec
        self.reward_range = task.reward_range

    def games(self, count):
        if torch.multiprocessing.parent_process() is not None:
            self.how()
        return self.task.games(count)

    def seed_of(self, *arguments):
        return self.task.seed_of(*arguments)


def fall_over():
    raise ValueError("no more games")


def be_killed():
    os.kill(os.getpid(), getattr(signal, "SIGKILL", 9))


@pytest.mark.parametrize(
    ("how", "message"),
    [(fall_over, "a worker failed: ValueError: no more games"), (be_killed, "exit code -?9")],
)
def test_worker_that_fails_ends_the_run_and_the_others(how, message, tmp_path, monkeypatch):
    build = CatchConfig.build
    monkeypatch.setattr(CatchConfig, "build", lambda *a: Broken(build(*a), how))
    with pytest.raises(RunFailed, match=message):
        train(a3c_config("trainer.max_updates=100000", "trainer.workers=1"), tmp_path)
    assert not torch.multiprocessing.active_children()


def children_of(process: int) -> set[int]:
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout
    pairs = [map(int, line.split()) for line in listed.splitlines()[1:]]
    return {child for child, parent in pairs if parent == process}


def running(process: int) -> bool:
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True
    ).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads ps of Linux")
def test_workers_end_with_their_parent(tmp_path):
    words = [*SMALL, "trainer=a3c", "trainer.workers=1", "trainer.max_updates=1000000"]
    command = [sys.executable, "-m", "fwrnn", "train", *words, "trainer.evaluate_every=10"]
    ways = (signal.SIGKILL, signal.SIGTERM)
    parents = {
        how: subprocess.Popen(
            [*command, f"hydra.run.dir={tmp_path / how.name}"],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for how in ways
    }
    try:
        for how, parent in parents.items():
            end_and_check(parent, how, tmp_path / how.name, time.monotonic() + 90)
    finally:
        for parent in parents.values():
            if parent.poll() is None:
                os.killpg(parent.pid, signal.SIGKILL)


def end_and_check(parent: subprocess.Popen, how: signal.Signals, run, wanted: float) -> None:
    while not (run / "curve.csv").exists():  # validated once: the workers work
        assert parent.poll() is None and time.monotonic() < wanted
        time.sleep(0.1)
    workers = children_of(parent.pid)
    assert len(workers) >= 2  # multiprocessing keeps a process of its own
    if how != signal.SIGKILL:  # as a batch system sends it: to all of them
        os.killpg(parent.pid, how)
    else:
        parent.send_signal(how)
    _, errors = parent.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert parent.returncode == 128 + how
        assert "nothing is lost" in errors and "Traceback" not in errors
    while any(running(worker) for worker in workers):
        assert time.monotonic() < wanted
        time.sleep(0.1)


class Slow:
    """A connection of a worker that says no more, and one that answers late."""

    def __init__(self, news):
        self.news = news

    def recv(self):
        if self.news is None:
            raise EOFError
        return self.news

    def send(self, answer):
        pass

    def close(self):
        pass


def test_worker_without_work_is_let_go_while_another_finishes(tmp_path, monkeypatch):
    config = a3c_config()
    _, _, task, model, device = assemble(config)
    trainer = a3c.A3CTrainer(model, task, config.trainer, 0, device, tmp_path)
    worker = type("Ended", (), {"join": lambda *a, **k: None, "is_alive": lambda s: False})
    worker.exitcode = 0
    idle, busy = Slow(None), Slow({"frames": 5, "loss": 1.0})
    trainer._workers = {idle: worker(), busy: worker()}
    monkeypatch.setattr(a3c, "wait", lambda connections, seconds: connections)
    assert trainer.update() == {"loss": torch.tensor(1.0)} and trainer.frames == 5
    assert idle not in trainer._workers
    busy.news, worker.exitcode = None, -9
    with pytest.raises(RunFailed, match="exit code -9"):
        trainer.update()


def test_divergence_is_one_line(tmp_path, capsys):
    words = [*SMALL, "model=rnn", "trainer.learning_rate=1e9", "trainer.clip_norm=null"]
    words += ["trainer.max_updates=40", "trainer.log_every=20", "trainer.evaluate_every=20"]
    assert main(["train", *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert "training diverged" in error and "Traceback" not in error


def test_asynchronous_training_wants_the_cpu(tmp_path):
    config = a3c_config()
    _, _, task, model, _ = assemble(config)
    with pytest.raises(UserError, match="CPU"):
        a3c.A3CTrainer(model, task, config.trainer, 0, torch.device("meta"), tmp_path)


def test_validation_plays_other_games_than_the_test():
    _, _, task, model, _ = assemble(compose(*SMALL))
    seeds = {task.seed_of("val"), task.seed_of("test")}
    seeds |= {task.seed_of("train", update) for update in range(100)}
    assert len(seeds) == 102 and all(0 <= seed < 2**63 for seed in seeds)
    result = evaluate_play(model, task, "val", 40, CPU)
    assert result == evaluate_play(model, task, "val", 40, CPU)
    assert math.isclose(result.reward, 2 * result.won - 1)
