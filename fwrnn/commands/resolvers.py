"""What configurations may compute, such as ``${by:…}``: OmegaConf's resolvers, by name."""

import hashlib
import math
import re
from itertools import chain, count
from pathlib import Path
from random import Random
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fwrnn.config import network_label
from fwrnn.files import WINDOWS


def register() -> None:
    """Have OmegaConf know them."""
    for name, resolver in (
        ("by", _by),
        ("draw", draw),
        ("label", network_label),
        ("run_name", _run_name),
    ):
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    OmegaConf.register_new_resolver("unused", _unused, replace=True)


def _by(choice: str, values: DictConfig) -> Any:
    """``${by:${task.dataset},{mnist:15600,digits:4000}}``: a value that depends on another key.

    A choice that is not listed gets the first value. (An unknown one is complained about later.)
    """
    return values.get(str(choice), next(iter(values.values())))


def draw(trial: int, name: str, kind: str, *values: Any) -> Any:
    """``${draw:${trial},learning_rate,loguniform,1e-4,1e-2}``: a value for random search.

    The same for the same trial and name, everywhere. ``kind`` is "uniform" or "loguniform" between
    two numbers, or "choice" among any.
    """
    random = Random(f"{trial} {name}")
    if kind == "choice":
        return random.choice(values)
    low, high = values
    if kind == "loguniform":
        return float(f"{math.exp(random.uniform(math.log(low), math.log(high))):.4g}")
    if kind == "uniform":
        return float(f"{random.uniform(low, high):.4g}")
    raise ValueError(f"draw knows uniform, loguniform and choice, got '{kind}'")


def _run_name(label: str, units: int, seed: int, overrides: list[str]) -> str:
    """``${run_name:…}``: a folder's name, which says in what a run differs from the defaults."""
    named = {"model", "control", "model.hidden_size", "seed", "experiment", "threads", "device"}
    pairs = {word.partition("=")[0]: word.partition("=")[2] for word in overrides}  # the last holds
    parts = [f"{label}-{units}"]
    for key, value in pairs.items():
        if key.lstrip("+") not in named and not key.endswith("_dir"):
            short = "" if key == "task" else f"{key.rpartition('.')[2].lstrip('+')}="
            parts.append(short + re.sub(r"[^\w.=+-]+", "-", value))
    name = "_".join([*parts, f"seed{seed}"])
    most = 80 if WINDOWS else 160  # as much as file systems take, and TensorBoard shows
    if len(name) > most:
        name = f"{name[: most - 20]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def _unused(folder: str, *, _root_: DictConfig) -> str:
    """``${unused:outputs/sweeps/${now:…}}``: that folder, or with _2, _3, … if there is one; made.

    Two sweeps may begin in the same second, and a clock may be set back. While Hydra composes,
    nothing is made: OmegaConf looks at a value also to put an experiment's in its place.
    """
    made = OmegaConf.get_cache(_root_).setdefault("unused", {})
    if folder not in made:
        if OmegaConf.is_missing(_root_.hydra.runtime, "cwd"):
            return folder
        made[folder] = _made(folder)
    return made[folder]


def _made(folder: str) -> str:
    for name in chain([folder], (f"{folder}_{k}" for k in count(2))):
        try:
            Path(name).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:  # who writes there will say so
            pass
        return name
    raise AssertionError("there is always a next number")
