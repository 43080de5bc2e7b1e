"""From a command line to a configuration, by Hydra, which only this and ``hydra_callback``
import."""

import os
import re
import sys
from collections.abc import Callable
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fwrnn.commands import resolvers
from fwrnn.commands.options import conf_dir
from fwrnn.config import GROUPS, Config, known_keys, read_config
from fwrnn.errors import RunFailed, UserError, suggestion
from fwrnn.files import from_here, unwritable
from fwrnn.registry import brought_configurations

resolvers.register()

_EXTRAS = {
    "optuna": "search",
    "joblib": "cores",
    "submitit_slurm": "slurm",
    "submitit_local": "slurm",
}
_SETTING = re.compile(r"~|=|[^-].*=")  # or its removal


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
    from hydra.errors import HydraException

    from fwrnn.commands.hydra_callback import SweepBegins

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
        job = _job(config)
        try:
            return work(job)
        except Exception as error:  # Hydra would print the overrides before the error gets here
            if job.sweep is not None:
                raise
            failures.append(error)
            return None

    options, overrides = checked(argv)
    sys.argv = ["fwrnn train", *options, "--", *overrides]
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


def _job(config: DictConfig) -> Job:
    """The job that Hydra is about to have done."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from fwrnn.commands.hydra_callback import side_by_side

    now = HydraConfig.get()
    swept = now.mode == RunMode.MULTIRUN
    return Job(
        config,
        folder=from_here(now.runtime.output_dir),
        overrides=list(now.overrides.task),
        chosen=any(word.lstrip("+").startswith("hydra.run.dir=") for word in now.overrides.hydra)
        or now.runtime.choices.get("experiment") is not None,
        sweep=from_here(now.sweep.dir, now.runtime.cwd) if swept else None,
        among_others=side_by_side(now.launcher),
    )


def planned(argv: list[str]) -> list[list[str]]:
    """The overrides of each job of a sweep over a grid; [] where only Hydra can tell."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if any(word.startswith("hydra/sweeper=") for word in argv):
        return []
    words = [word for word in checked(argv)[1] if not word.startswith("hydra")]
    try:
        overrides = OverridesParser.create().parse_overrides(words)
        (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    except Exception:  # a glob, or what is wrong and said so later
        return []
    return [list(job) for job in jobs]


def compose_config(*overrides: str) -> Config:
    """The checked configuration that ``fwrnn train`` would run with these overrides.

    Raises:
        UserError: an override or a configuration is wrong.
    """
    return read_config(composed(overrides))


def settings(argv: list[str]) -> dict[str, Any]:
    """What words such as "model.decay=0.9" set, by their keys.

    Raises:
        UserError: a word sets nothing, or more than one value.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    found = {}
    for word in chain(*checked(argv)):
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise UserError(f"cannot read '{word}': {str(error).splitlines()[0]}") from error
        if override.is_delete() or override.is_sweep_override():
            raise UserError(f"'{word}' is not one value; give KEY=VALUE")
        found[override.key_or_group] = override.value()
    return found


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


def composed(overrides, with_hydra: bool = False) -> DictConfig:
    """What Hydra composes; if asked for, its own settings among it."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    _find_brought_configurations()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return compose("config", list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def checked(argv: list[str]) -> tuple[list[str], list[str]]:
    """Options with their values, and overrides; both looked at first."""
    from hydra._internal.utils import get_args_parser

    overrides = [_path_as_written(word) for word in argv if _SETTING.match(word)]
    options = [word for word in argv if not _SETTING.match(word)]
    if any(
        word.lstrip("-").partition("=")[0] in ("sc", "shell-completion", "shell_completion")
        for word in options
    ):
        raise UserError("Tab completion is had by: fwrnn completion bash (or zsh, or fish)")
    parser = get_args_parser()
    parser.error = _refuse  # one line instead of argparse's usage
    parser.allow_abbrev = False  # nobody else would know --multi for a sweep
    for word in parser.parse_args(options).overrides + overrides:
        key, assigned, value = word.partition("=")
        name, removed = key.lstrip("+~"), key.startswith("~")
        if name in GROUPS and (removed or value in ("", "null")):
            raise UserError(f"{name} needs an option, got '{word}'; see fwrnn train --help")
        if name in ("hydra.run.dir", "hydra.sweep.dir") and not value:  # a variable that is not set
            raise UserError(f"{name} needs a folder, got '{word}'; leave it out for one of its own")
        if not key or not (assigned or removed):
            raise UserError(f"'{word}' is not a setting; settings are written KEY=VALUE")
    return options, overrides


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
    # Of backslashes the grammar takes only those before a quote for more than themselves.
    escaped = re.sub(r"(\\*)(')", r"\1\1\\'", path)
    escaped += "\\" * (len(path) - len(path.rstrip("\\")))
    return f"{key}='{escaped}'"
