"""What a run has to say of itself: at its start, and in ``metrics.json``."""

import json
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

from fwrnn import __version__
from fwrnn.config import Config, network_label
from fwrnn.learning.loop import Progress
from fwrnn.machine import processor
from fwrnn.models.network import Network


def describe(config: Config, model: Network, device: torch.device) -> str:
    """One line on what is about to be trained."""
    where = f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else f"{device}"
    variant = f" ({config.task.variant})" if config.task.variant else ""
    return (
        f"{label(config)} on {config.task.name}{variant}: "
        f"{model.parameter_count:,} parameters, {model.state_size:,} numbers of state per "
        f"sequence; seed {config.seed}, {where}"
    )


def label(config: Config) -> str:
    """The network in a word, such as fast_weights-20 or fast_weights_folded-20."""
    return f"{network_label(config.model.name, config.control)}-{config.model.hidden_size}"


def metrics_of(
    config: Config,
    model: Network,
    device: torch.device,
    progress: Progress,
    reason: str,
    test: dict,
) -> dict:
    """The content of ``metrics.json``: flat; errors are fractions, losses nats.

    ``test`` is what the test measured and what else the kind of task records.
    """
    return {
        "task": config.task.name,
        "dataset": config.task.variant,
        "model": config.model.name,
        "control": config.control,
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
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "processor": processor(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fwrnn": __version__,
        "commit": " ".join(progress.commits) or None,
    }


def compared_settings(config: Config) -> dict[str, bool | int | float | str]:
    """What people compare runs by, for TensorBoard's HPARAMS tab.

    It sorts by name and shows the first five: those in capitals.
    """
    found = {
        "Learning rate": config.trainer.learning_rate,
        "Model": network_label(config.model.name, config.control),
        "Seed": config.seed,
        "Task": config.task.name,
        "Units": config.model.hidden_size,
    }
    for part in (config.task, config.model, config.trainer):
        for name in ("pairs", "size", "variant", "decay", "fast_lr", "inner_steps", "clip_norm"):
            value = getattr(part, name, None)
            if isinstance(value, bool | int | float | str):
                found[name] = value
    return found


def code() -> str:
    """What a run records as its code: the commit, or of an installed package the version."""
    return commit() or f"v{__version__}"


def commit() -> str | None:
    """The commit this code was checked out or installed from, "+" appended where it was changed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = ["ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run([*git, *tracked], capture_output=True, check=True, timeout=5)
        status = ["describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        result = subprocess.run([*git, *status], capture_output=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return _installed_commit()
    return result.stdout.decode().strip()


def _installed_commit() -> str | None:
    """The commit that pip was pointed to, as in ``pip install git+https://…``; None for others."""
    try:
        source = json.loads(distribution("fwrnn").read_text("direct_url.json") or "{}")
        return str(source["vcs_info"]["commit_id"])[:12]
    except (PackageNotFoundError, OSError, ValueError, LookupError, TypeError):
        return None
