"""What a run has to say of itself: at its start, at its end, and in ``metrics.json``."""

import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf

from fwrnn import __version__
from fwrnn.config import ActorCriticConfig, CatchConfig, Config
from fwrnn.interfaces import GameTask, SupervisedTask, Task, is_game
from fwrnn.models import Network
from fwrnn.reports.games import animation, record, strip
from fwrnn.reports.pictures import of_results
from fwrnn.training.evaluation import Score, predict, score
from fwrnn.training.games import Result, evaluate_play
from fwrnn.training.loop import Progress

GOAL = 0.9  # the reward of ``frames_to_0.9``


def describe(config: Config, model: Network, device: torch.device) -> str:
    """One line on what is about to be trained."""
    where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{device}"
    dataset = f" ({dataset_of(config)})" if dataset_of(config) else ""
    return (
        f"{config.model.name}-{config.model.hidden_size} on {config.task.name}{dataset}: "
        f"{model.parameter_count:,} parameters, {model.state_size:,} numbers of state per "
        f"sequence; seed {config.seed}, {where}"
    )


def dataset_of(config: Config) -> str | None:
    """Which of a task's data sets or games it is: a stand-in must not pass for the real one."""
    if isinstance(config.task, CatchConfig):
        return f"N={config.task.size}, M={config.task.visible_frames}"
    chosen = getattr(config.task, "dataset", None) or getattr(config.task, "layout", None)
    return chosen and chosen.name


class Outcome(NamedTuple):
    """What a test brought: flat ``metrics``, a few ``words`` for people, and pictures by name.

    ``headline`` are the metrics that TensorBoard's HPARAMS tab compares runs by.
    """

    metrics: dict
    words: str
    headline: tuple[str, ...]
    pictures: dict[str, np.ndarray]
    animations: dict[str, bytes]


def test(config: Config, task: Task, model: Network, device: torch.device, curve) -> Outcome:
    """The one test of a run's best weights, which ``model`` has; ``curve`` is the run's."""
    if is_game(task):
        return _test_player(config.trainer, task, model, device, curve)
    return _test_classifier(task, model, device)


def _test_classifier(task: SupervisedTask, model: Network, device: torch.device) -> Outcome:
    examples = task.split("test").to(device)
    logits = predict(model, examples)
    result = score((logits, examples.targets))
    metrics = {
        "test_error": result.error,
        "test_loss": result.loss,
        "test_wrong": result.wrong,
        "test_examples": result.count,
    }
    pictures = of_results(task, examples.to("cpu"), logits.cpu())
    words = f"test error {percent(result)}"
    return Outcome(metrics, words, ("test_error", "val_error"), pictures, {})


def _test_player(
    config: ActorCriticConfig,
    task: GameTask,
    model: Network,
    device: torch.device,
    curve: list[dict],
) -> Outcome:
    result = evaluate_play(model, task, "test", config.test_games, device)
    metrics = {
        "test_reward": result.reward,
        "test_reward_low": result.low,
        "test_reward_high": result.high,
        "test_won": result.won,
        "test_games": result.games,
        "val_games": config.val_games,
        "frames": curve[-1]["frames"],
        "frames_per_second": round(curve[-1]["frames"] / max(curve[-1]["seconds"], 1e-9), 1),
        f"frames_to_{GOAL}": frames_to(curve, GOAL),
    }
    played = record(model, task, device)
    return Outcome(
        metrics,
        f"test reward {reward_words(result)}",
        ("test_reward", "val_reward"),
        {"game": strip(played)},
        {"games": animation(played)},
    )


def frames_to(curve: list[dict], goal: float) -> int | None:
    """Frames until the validation games' mean reward stays above ``goal``; None if it does not."""
    first = None
    for row in curve:
        if row["val_reward"] <= goal:
            first = None
        elif first is None:
            first = row["frames"]
    return first


def metrics_of(
    config: Config,
    model: Network,
    device: torch.device,
    progress: Progress,
    reason: str,
    test: dict,
    code: str | None,
) -> dict:
    """The content of ``metrics.json``: flat; errors are fractions, losses nats.

    ``test`` is what the test measured, ``code`` what ``commit`` said when the run began.
    """
    return {
        "task": config.task.name,
        "dataset": dataset_of(config),
        "model": config.model.name,
        "hidden_size": config.model.hidden_size,
        "seed": config.seed,
        **test,
        **{name: value for name, value in progress.best.items() if name.startswith("val_")},
        "best_update": progress.best_update,
        "updates": progress.update,
        "seconds": round(progress.seconds, 2),
        "updates_per_second": round(progress.update / max(progress.seconds, 1e-9), 2),
        "stopped": reason,
        "parameters": model.parameter_count,
        "state_size": model.state_size,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "fwrnn": __version__,
        "commit": code,
    }


def flat_settings(config: Config) -> dict[str, object]:
    """The configuration as one level of dotted keys, for TensorBoard's HPARAMS tab."""

    def walk(prefix: str, values: dict):
        for key, value in values.items():
            if isinstance(value, dict):
                yield from walk(f"{prefix}{key}.", value)
            else:
                plain = value if isinstance(value, (bool, int, float, str)) else str(value)
                yield prefix + key, plain

    container = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(container, dict)
    return dict(walk("", container))


def percent(score: Score) -> str:
    """A score for people: "0.02 % (3 of 20,000)"."""
    return f"{100 * score.error:.2f} % ({score.wrong:,} of {score.count:,})"


def reward_words(result: Result) -> str:
    """A result for people: "0.982 (95 %: 0.968 to 0.990; 99.1 % of 1,000 games won)"."""
    return (
        f"{result.reward:.3f} (95 %: {result.low:.3f} to {result.high:.3f}; "
        f"{100 * result.won:.1f} % of {result.games:,} games won)"
    )


def commit() -> str | None:
    """The commit this code was checked out from, "+" appended when it has been changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = ["ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run([*git, *tracked], capture_output=True, check=True, timeout=5)
        status = ["describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        result = subprocess.run([*git, *status], capture_output=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.decode().strip()
