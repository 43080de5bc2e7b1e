"""What a run has to say of itself: at its start, at its end, and in ``metrics.json``."""

import subprocess
from pathlib import Path

import torch
from omegaconf import OmegaConf

from fwrnn import __version__
from fwrnn.config import Config
from fwrnn.models import Classifier
from fwrnn.training.evaluation import Score
from fwrnn.training.supervised import Progress


def describe(config: Config, model: Classifier, device: torch.device) -> str:
    """One line on what is about to be trained."""
    where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{device}"
    dataset = f" ({dataset_of(config)})" if dataset_of(config) else ""
    return (
        f"{config.model.name}-{config.model.hidden_size} on {config.task.name}{dataset}: "
        f"{model.parameter_count:,} parameters, {model.state_size:,} numbers of state per "
        f"sequence; seed {config.seed}, {where}"
    )


def dataset_of(config: Config) -> str | None:
    """Which of a task's data sets it is: a stand-in must not pass for the real one."""
    chosen = getattr(config.task, "dataset", None) or getattr(config.task, "layout", None)
    return chosen and chosen.name


def metrics_of(
    config: Config,
    model: Classifier,
    device: torch.device,
    progress: Progress,
    reason: str,
    test: Score,
    code: str | None,
) -> dict:
    """The content of ``metrics.json``: flat; errors are fractions, losses nats.

    ``code`` is what ``commit`` said when the run began.
    """
    return {
        "task": config.task.name,
        "dataset": dataset_of(config),
        "model": config.model.name,
        "hidden_size": config.model.hidden_size,
        "seed": config.seed,
        "test_error": test.error,
        "test_loss": test.loss,
        "test_wrong": test.wrong,
        "test_examples": test.count,
        "val_error": progress.best_error,
        "val_loss": progress.best_loss,
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
    return dict(walk("", container))


def percent(score: Score) -> str:
    """A score for people: "0.02 % (3 of 20,000)"."""
    return f"{100 * score.error:.2f} % ({score.wrong:,} of {score.count:,})"


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
