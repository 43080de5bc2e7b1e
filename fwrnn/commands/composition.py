"""From a command line to a configuration, by Hydra, which only this and ``hydra_callback`` know."""

import hashlib
import math
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import chain, count
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, NoReturn

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fwrnn.config import GROUPS, TASKS, Config, known_keys, network_label, read_config
from fwrnn.errors import RunFailed, UserError, suggestion
from fwrnn.files import unwritable
from fwrnn.registry import brought_configurations

_EXTRAS = {
    "optuna": "search",
    "joblib": "cores",
    "submitit_slurm": "slurm",
    "submitit_local": "slurm",
}
_TAKING = {"-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name"}
_TAKING |= {"-cd", "--config-dir", "-i", "--info", "--experimental-rerun"}


def _by(choice: str, values: DictConfig) -> Any:
    """``${by:${task.dataset},{mnist:15600,digits:4000}}``: a value that depends on another key.

    An unknown choice gets the first value: the key that it came from is complained about later.
    """
    return values.get(str(choice), next(iter(values.values())))


def _draw(trial: int, name: str, kind: str, *values: Any) -> Any:
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
    if len(name) > 160:  # as much as file systems take, and TensorBoard shows
        name = f"{name[:140]}_{hashlib.sha256(name.encode()).hexdigest()[:12]}"
    return name


def _unused(folder: str) -> str:
    """``${unused:outputs/sweeps/${now:…}}``: that folder, or with _2, _3, … if there is one; made.

    Two sweeps may begin in the same second, and a clock may be set back.
    """
    for name in chain([folder], (f"{folder}_{k}" for k in count(2))):
        try:
            Path(name).mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError:  # who writes there will say so
            pass
        return name
    raise AssertionError("there is always a next number")


OmegaConf.register_new_resolver("by", _by, replace=True)
OmegaConf.register_new_resolver("unused", _unused, replace=True, use_cache=True)
OmegaConf.register_new_resolver("draw", _draw, replace=True)
OmegaConf.register_new_resolver("label", network_label, replace=True)
OmegaConf.register_new_resolver("run_name", _run_name, replace=True)


def conf_dir() -> Path:
    """The folder of the shipped configurations: inside an installed package, else beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


class Job(NamedTuple):
    """What Hydra made of one job.

    ``chosen`` tells that somebody, or an experiment, chose the folder; ``sweep`` is the folder of
    the sweep that it is of, ``overrides`` what makes it this job; ``among_others`` that others run
    on the same processors.
    """

    config: DictConfig
    folder: Path
    overrides: list[str]
    chosen: bool
    sweep: Path | None
    among_others: bool


def run_with_hydra(
    work: Callable[[Job], Any],
    argv: list[str],
    begin: Callable[[Path, bool], None] = lambda folder, apart: None,
) -> None:
    """Compose a configuration from ``argv`` and call ``work``, once per job if it is a sweep.

    ``begin`` is called before a sweep's first job, with its folder and whether its jobs are
    processes of their own on this machine. What it raises ends the sweep.

    Raises:
        UserError: the command line or a configuration is wrong.
        Exception: what ``work`` raised, in a run that is not of a sweep.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode

    from fwrnn.commands.hydra_callback import SweepBegins, side_by_side

    _find_brought_configurations()
    failures: list[Exception] = []

    def begun(folder: Path, apart: bool) -> None:
        try:
            begin(folder, apart)
        except Exception as error:  # Hydra would warn of it and go on
            failures.append(error)
            raise SystemExit from error

    SweepBegins.tell = staticmethod(begun)

    def guarded(config: DictConfig) -> Any:
        now = HydraConfig.get()
        swept = now.mode == RunMode.MULTIRUN
        job = Job(
            config,
            Path(os.path.relpath(now.runtime.output_dir)),
            list(now.overrides.task),
            any(w.startswith("hydra.run.dir=") for w in now.overrides.hydra)
            or now.runtime.choices.get("experiment") is not None,
            Path(os.path.relpath(now.sweep.dir, now.runtime.cwd)) if swept else None,
            side_by_side(now.launcher),
        )
        try:
            return work(job)
        except Exception as error:  # Hydra would print the overrides before the error gets here
            if swept:
                raise
            failures.append(error)
            return None

    sys.argv = ["fwrnn train", *_checked(argv)]
    entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    try:
        entry(guarded)()
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
        raise UserError(explain(error)) from error
    except SystemExit:
        if not failures:
            raise
    except RuntimeError as error:
        if type(error).__module__.partition(".")[0] not in ("submitit", "joblib"):
            raise
        reason = " ".join(str(error).partition("\nError stream")[0].split())
        raise RunFailed(f"a process ended before its job: {reason}") from error
    except OSError as error:  # Hydra makes the folders
        instead = "hydra.run.dir=DIR chooses another folder, hydra.sweep.dir=DIR that of a sweep"
        raise unwritable(error.filename or "outputs", error, instead) from error
    if failures:
        raise failures[0]


def planned(argv: list[str]) -> list[list[str]]:
    """The overrides of each job of a sweep over a grid; [] where only Hydra can tell."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if any(word.startswith("hydra/sweeper=") for word in argv):
        return []
    words = [word for word in _checked(argv) if word[0] != "-" and not word.startswith("hydra")]
    try:
        overrides = OverridesParser.create().parse_overrides(words)
        (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    except Exception:  # a glob, or what is wrong and said so later
        return []
    return [list(job) for job in jobs]


def check_recorded(words: list[str]) -> None:
    """Refuse what in a recorded command would do more than train: whoever wrote it may be a
    stranger, and Hydra imports and calls what it is told to, and reads files wherever they lie.

    Raises:
        UserError: a word that is not a plain setting of ours.
    """
    from fwrnn.learning.assembly import is_cache

    options = {**group_options(), **_HYDRA_GROUPS}
    keys = {*known_keys(), "trial", *_HYDRA_KEYS} - {"resume"}
    plain = {key for key in keys if key.rpartition(".")[2] not in _INTERNALS}
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        chosen = re.sub(r"^choice\((.*)\)$", r"\1", value).split(",")
        if key in options:
            known = {option.strip(" '\"") for option in chosen} <= {*options[key], "null"}
        elif key == "hydra.sweep.subdir":  # which is to lie below the sweep's folder
            known = (
                re.fullmatch(r"([\w=+/-]|\.(?!\.)|\$\{(seed|trial)\})+", value) and value[0] != "/"
            )
        elif key == "task.cache_dir":
            known = value == "null" or is_cache(value)
        else:
            known = key in plain and not re.search(r"\$\{(?![\w.]+\})", value)
        if not known and word not in ("-m", "--multirun"):
            raise UserError(
                f"'{word}' in the recorded command does more than choose what to train; where you "
                "trust it, give the command yourself"
            )


_HYDRA_GROUPS = {
    "hydra/launcher": ["basic", "joblib", "cores", "submitit_local", "submitit_slurm", "slurm"],
    "hydra/sweeper": ["basic", "optuna"],
}
_HYDRA_KEYS = {"hydra.sweep.dir"}
_HYDRA_KEYS |= {f"hydra.sweeper.{name}" for name in ("n_trials", "n_jobs", "sampler.seed")}
_HYDRA_KEYS |= {
    f"hydra.launcher.{name}"
    for name in (
        "n_jobs", "partition", "account", "qos", "constraint", "timeout_min", "max_num_timeout",
        "cpus_per_task", "gpus_per_node", "mem_gb", "array_parallelism", "signal_delay_s",
    )
}  # fmt: skip


def compose_config(*overrides: str) -> Config:
    """The checked configuration that ``fwrnn train`` would run with these overrides.

    Raises:
        UserError: an override or a configuration is wrong.
    """
    return read_config(_composed(overrides))


def settings(argv: list[str]) -> dict[str, Any]:
    """What words such as "model.decay=0.9" set, by their keys.

    Raises:
        UserError: a word sets nothing, or more than one value.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found = {}
    for word in _checked(argv):
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise UserError(f"cannot read '{word}': {str(error).splitlines()[0]}") from error
        if override.is_delete() or override.is_sweep_override():
            raise UserError(f"'{word}' is not one value; give KEY=VALUE")
        found[override.key_or_group] = override.value()
    return found


def help_text(argv: list[str]) -> str:
    """What ``fwrnn train`` takes, and what it would run with ``argv``, each key explained.

    Of a sweep it is about the first job.

    Raises:
        UserError: an override is wrong, or what is chosen does not go together, with any task if
            ``argv`` chooses none.
    """
    words = [word for word in _checked(argv) if word[0] != "-"]
    if {"-m", "--multirun"} & set(argv):
        words = next(iter(planned(argv)), words)
    config, note = _fitting(words)
    chosen = config.hydra.runtime.choices
    lines = [
        HEADER,
        *(f"  {group + '=':<12}{', '.join(names)}" for group, names in group_options().items()),
        *note,
    ]
    for group in GROUPS:
        comments, title = _comments(f"{group}/{chosen[group]}")
        lines += ["", f"{group}={chosen[group]}: {' '.join(title)}"]
        values = {key: config[group][key] for key in config[group] if key not in _INTERNALS}
        lines += _explained(f"{group}.", values, comments)
    comments, _ = _comments("config")
    control = chosen.control or "none"
    _, title = _comments(f"control/{control}")
    values = {key: config[key] for key in ("seed", "device", "threads", "resume")}
    lines += ["", f"control={control}: {' '.join(title)}", ""]
    return "\n".join([*lines, *_explained("", values, comments), "", FOOTER])


def _fitting(words: list[str]) -> tuple[DictConfig, list[str]]:
    """What Hydra composes, checked as for training; and what help says of it beforehand.

    Who asks what a model or a trainer takes need not know for which tasks it is: if ``words`` have
    none, and it is not for the default, it is shown with the first that it is for.
    """
    try:
        return _composed_checked(words), []
    except UserError as error:
        if any(word.lstrip("+").startswith("task=") for word in words):
            raise
        for task in TASKS:
            with suppress(UserError):
                config = _composed_checked([*words, f"task={task}"])
                return config, ["", f"Shown with task={task}, as without it: {error}"]
        raise


def _composed_checked(words: list[str]) -> DictConfig:
    config = _composed(words, with_hydra=True)
    read_config(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    return config


_INTERNALS = {"name", "core"}  # which choosing the option sets


def group_options() -> dict[str, list[str]]:
    """What can be chosen of each group, brought by other packages too."""
    found = {}
    for group in (*GROUPS, "control", "experiment"):
        folders = (folder / group for folder in _conf_dirs())
        found[group] = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    return found


HEADER = """\
fwrnn train: train a model on a task, test it once, and log to TensorBoard.

usage: fwrnn train [GROUP=OPTION …] [KEY=VALUE …]        -m before them: a sweep over KEY=A,B,C
"""
FOOTER = """\
Examples:
  fwrnn train task=assoc_retrieval
  fwrnn train model=lstm model.hidden_size=100 seed=1
  fwrnn train task=mnist_glimpses model.hidden_size=200
  fwrnn train -m control=none,no_memory,folded seed=0,1
  fwrnn train resume=outputs/runs/RUN

More: --help task=catch (what it takes), --cfg job (the configuration, without running it),
--hydra-help (Hydra's own options)"""


def _explained(prefix: str, values: dict, comments: dict[str, str]) -> list[str]:
    """A line for every key, as one would set it, with its comment behind it."""
    rows = {key: f"  {prefix}{key}={_as_set(value)}" for key, value in values.items()}
    width = max(len(row) for row in rows.values() if len(row) < 40)
    return [
        f"{row:<{width}}   # {comments[key]}" if key in comments else row
        for key, row in rows.items()
    ]


def _as_set(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, ListConfig):
        return f"[{','.join(map(_as_set, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _comments(name: str) -> tuple[dict[str, str], list[str]]:
    """What a configuration's file, and those that it is made from, say of each key and at first."""
    path = next(path for folder in _conf_dirs() if (path := folder / f"{name}.yaml").is_file())
    text, comments = path.read_text(encoding="utf-8"), {}
    for shared in re.findall(r"^  - /?([\w/]+)@_here_$", text, re.M):
        comments |= _comments(shared)[0]
    comments |= dict(re.findall(r"^(\w+):.*?\s# ?(.*)$", text, re.M))
    title = re.match(r"(?:#.*\n)*", text)
    assert title is not None  # which may be empty
    return comments, re.findall(r"^#(?! ?@) ?(.+)$", title.group(), re.M)


def _conf_dirs() -> tuple[Path, ...]:
    return conf_dir(), *brought_configurations()


@cache
def _find_brought_configurations() -> None:
    """Have Hydra look for options in the packages that bring some."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class Brought(SearchPathPlugin):
        def manipulate_search_path(self, search_path) -> None:
            for folder in brought_configurations():
                search_path.append("fwrnn", f"file://{folder}")

    Plugins.instance().register(Brought)


def _composed(overrides, with_hydra: bool = False) -> DictConfig:
    """What Hydra composes; if asked for, its own settings among it."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    _find_brought_configurations()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose("config", list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def _checked(argv: list[str]) -> list[str]:
    """Options before overrides, the one order that Hydra's parser reads; both looked at first."""
    from hydra._internal.utils import get_args_parser

    options, overrides, rest = [], [], list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(_path_as_written(word))
            continue
        options.append(word)
        if word in _TAKING and rest and "=" not in rest[0] and not rest[0].startswith("-"):
            options.append(rest.pop(0))
        elif word in _TAKING and word not in ("-i", "--info"):
            raise UserError(f"option {word} needs a value; see fwrnn train --hydra-help")
    if any(
        word.lstrip("-").partition("=")[0] in ("sc", "shell-completion", "shell_completion")
        for word in options
    ):
        raise UserError("Tab completion is had by: fwrnn completion bash (or zsh, or fish)")
    parser = get_args_parser()
    parser.error = _refuse  # one line instead of argparse's usage
    parser.parse_args(options)
    for word in overrides:
        key, assigned, value = word.partition("=")
        removed = key.startswith("~")
        if key.lstrip("~") in GROUPS and (removed or value in ("", "null")):
            group = key.lstrip("~")
            raise UserError(f"{group} needs an option, got '{word}'; see fwrnn train --help")
        if key in ("hydra.run.dir", "hydra.sweep.dir") and not value:  # a variable that is not set
            raise UserError(f"{key} needs a folder, got '{word}'; leave it out for one of its own")
        if not key or not (assigned or removed):
            raise UserError(f"'{word}' is not a setting; settings are written KEY=VALUE")
    return options + overrides


def _refuse(message: str) -> NoReturn:
    raise UserError(
        f"{message}; settings are written KEY=VALUE, without dashes; see fwrnn train --help"
    )


def explain(error: Exception) -> str:
    """One line for an error of Hydra or OmegaConf, with the nearest right name."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, MissingConfigException) and error.options:
        group = (error.missing_cfg_file or "").rpartition("/")
        wrong, group = group[2], group[0].lstrip("/")
        options = [option for option in error.options if option != "config"]
        extra = _EXTRAS.get(wrong)
        if extra:
            return f"{group}={wrong} needs: pip install 'fwrnn[{extra}]'"
        return (
            f"unknown {group} '{wrong}'{suggestion(wrong, options)} Options: {', '.join(options)}"
        )
    text = str(error)
    if text.startswith("Ambiguous value"):
        return f"{text.splitlines()[0]}; to sweep over it, put -m before; a list is [A,B]"
    wrong = _quoted_after("Could not override '", text)
    if wrong is not None:
        others = [key for key in known_keys() if key != wrong]
        return f"unknown key '{wrong}' for what is chosen{suggestion(wrong, others)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}': {text.splitlines()[0]}"
    cause, file = error.__cause__, _quoted_after("In '", text)
    key = _quoted_after("full_key: ", text, "\n")
    if file and key and key.startswith("hydra."):
        chosen = key.split(".")[1]
        return (
            f"{file} is for another {chosen}, which has {key}; choose it with "
            f"hydra/{chosen}=NAME, as the file's first lines show"
        )
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if cause is not None and str(cause).strip() and str(cause).splitlines()[0] not in first:
        first += f" ({str(cause).splitlines()[0]})"
    return first


def _quoted_after(start: str, text: str, end: str = "'") -> str | None:
    _, found, rest = text.partition(start)
    return rest.split(end)[0] if found else None


def _path_as_written(word: str) -> str:
    """A setting of a path, quoted where Hydra's grammar would read more into it than a path."""
    key, _, value = word.partition("=")
    if not key.endswith(("_dir", ".dir")) or not value or value[0] in "'\"":
        return word
    path = str(Path(value).expanduser()) if value.startswith("~/") else value
    if re.fullmatch(r"[\w./-]*", path, re.ASCII):
        return f"{key}={path}"
    escaped = path.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{escaped}'"
