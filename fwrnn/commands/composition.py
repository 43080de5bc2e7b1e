"""From a command line to a checked configuration: Hydra, and its errors in one line each."""

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING
from pathlib import Path
from random import Random
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fwrnn.config import SCHEMAS, Config
from fwrnn.errors import UserError, suggestion

log = logging.getLogger("fwrnn")

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


OmegaConf.register_new_resolver("by", _by, replace=True)
OmegaConf.register_new_resolver("draw", _draw, replace=True)


def conf_dir() -> Path:
    """The folder of the shipped configurations: inside an installed package, else beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def default_help() -> str:
    """The help for the default choices, from the files as they are, with their comments.

    Hydra's own, which takes overrides into account, spends half a second on listing the groups.
    """
    conf = conf_dir()
    words = OmegaConf.load(conf / "hydra" / "help" / "fwrnn.yaml")
    parts = [words.header, "Choose one of each group with GROUP=OPTION:\n"]
    for group in (*SCHEMAS, "experiment"):
        options = sorted(path.stem for path in (conf / group).glob("*.yaml"))
        parts.append(f"  {group}: {', '.join(options)}")
    parts.append("\nChange any key with KEY=VALUE; several values with -m (a sweep). By default:\n")
    defaults = OmegaConf.to_container(OmegaConf.load(conf / "config.yaml").defaults)
    assert isinstance(defaults, list)
    chosen = {k: v for entry in defaults if isinstance(entry, dict) for k, v in entry.items()}
    for group in SCHEMAS:
        option = chosen[group]
        text = (conf / group / f"{option}.yaml").read_text().strip()
        for shared in ("network", "head"):
            named = rf"defaults:\n  - /?{shared}(@_here_)?\n  - _self_"
            text = re.sub(named, (conf / f"{shared}.yaml").read_text().strip(), text)
        parts.append(f"{group}:\n" + "\n".join(f"  {line}" for line in text.splitlines()))
    top = (conf / "config.yaml").read_text()
    parts.append(top[top.index("seed:") : top.index("hydra:\n")].strip() + "\n")
    return "\n".join([*parts, words.footer]).rstrip()


def run_with_hydra(job: Callable[[DictConfig, Path, list[str]], Any], argv: list[str]) -> None:
    """Compose a configuration from ``argv`` and call ``job`` with it, or once per job of a sweep.

    ``job`` gets the configuration, the folder that Hydra made for it, and the overrides.

    Raises:
        UserError: the command line or a configuration is wrong.
        Exception: what ``job`` raised; in a sweep the first, once all of its jobs have run.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode

    failures: list[Exception] = []

    def guarded(config: DictConfig) -> Any:
        # Hydra would print the overrides of a failed job before the error gets here.
        now = HydraConfig.get()
        folder = Path(os.path.relpath(now.runtime.output_dir))
        try:
            overrides = OmegaConf.to_container(now.overrides.task)  # as written
            assert isinstance(overrides, list)
            return job(config, folder, overrides)
        except Exception as error:
            if now.mode == RunMode.MULTIRUN:
                log.error(f"{folder}: {error}")
            failures.append(error)
            return float("nan")

    sys.argv = ["fwrnn train", *_checked(argv)]
    entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    try:
        entry(guarded)()
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
        raise UserError(explain(error)) from error
    if failures:
        raise failures[0]


def compose_config(*overrides: str) -> Config:
    """The checked configuration that ``fwrnn train`` would run with these overrides.

    Raises:
        UserError: an override or a configuration is wrong.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3"):
            return read_config(compose("config", list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def _checked(argv: list[str]) -> list[str]:
    """Options before overrides, the one order that Hydra's parser reads; both looked at first."""
    from hydra._internal.utils import get_args_parser

    options, overrides, rest = [], [], list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-"):
            overrides.append(word)
            continue
        options.append(word)
        if word in _TAKING and rest and "=" not in rest[0] and not rest[0].startswith("-"):
            options.append(rest.pop(0))
        elif word in _TAKING and word not in ("-i", "--info"):
            raise UserError(f"option {word} needs a value; see fwrnn train --hydra-help")
    parser = get_args_parser()
    parser.error = _refuse  # one line instead of argparse's usage
    parser.parse_args(options)
    for word in overrides:
        key, assigned, value = word.partition("=")
        removed = key.startswith("~")
        if key.lstrip("~") in SCHEMAS and (removed or value in ("", "null")):
            group = key.lstrip("~")
            raise UserError(f"{group} needs an option, got '{word}'; see fwrnn train --help")
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
        return (
            f"unknown {group} '{wrong}'{suggestion(wrong, options)} Options: {', '.join(options)}"
        )
    text = str(error)
    wrong = _quoted_after("Could not override '", text)
    if wrong is not None:
        others = [key for key in known_keys() if key != wrong]
        return f"unknown key '{wrong}' for what is chosen{suggestion(wrong, others)}"
    if isinstance(error, OverrideParseException):
        return f"cannot read '{error.override}': {text.splitlines()[0]}"
    cause = error.__cause__
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if cause is not None and str(cause).strip() and str(cause).splitlines()[0] not in first:
        first += f" ({str(cause).splitlines()[0]})"
    return first


def _quoted_after(start: str, text: str) -> str | None:
    _, found, rest = text.partition(start)
    return rest.split("'")[0] if found else None


def known_keys() -> list[str]:
    """Every key that ``fwrnn train`` knows, as one would write it on the command line."""
    keys = list(Config.__dataclass_fields__) + ["resume", "experiment"]
    for group, (_, schemas) in SCHEMAS.items():
        for schema in schemas.values():
            keys += [f"{group}.{name}" for name in schema.__dataclass_fields__]
    return keys


def read_config(values: DictConfig | dict, groups: Iterable[str] = tuple(SCHEMAS)) -> Config:
    """A checked ``Config`` from a composed or a saved configuration.

    Groups other than ``groups`` are not looked at and None: to test a model it does not matter
    how an earlier version trained it.

    Raises:
        UserError: a key that the schema lacks, a missing one, a value of a wrong type or out of
            range, or a group set to null.
    """
    try:
        plain = OmegaConf.to_container(OmegaConf.create(values), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0][:200]}") from error
    assert isinstance(plain, dict)
    for key in ("resume", "experiment", "trial"):
        plain.pop(key, None)
    for group in SCHEMAS:
        given = plain.pop(group, None)
        plain[group] = _read_group(group, given) if group in groups else None
    return _typed("", Config, plain)


def _read_group(group: str, values: Any) -> Any:
    key, schemas = SCHEMAS[group]
    if not isinstance(values, dict):
        raise UserError(f"{group} needs an option, got {values!r}; see fwrnn train --help")
    name = values.get(key)
    if name not in schemas:
        raise UserError(
            f"unknown {group}.{key} '{name}'{suggestion(str(name), schemas)} "
            f"Known: {', '.join(schemas)}"
        )
    for field in values:
        takers = [n for n, schema in schemas.items() if field in schema.__dataclass_fields__]
        if takers and name not in takers:
            raise UserError(
                f"{group}.{field} is not for {key} '{name}'; choose "
                f"{group}={' or '.join(takers)}, or another task"
            )
    return _typed(f"{group}.", schemas[name], values)


def _typed(prefix: str, schema: type, values: dict) -> Any:
    """``schema(**values)`` with OmegaConf's conversions, and its complaints in one line."""
    fields = schema.__dataclass_fields__
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise UserError(f"unknown key '{prefix}{unknown[0]}'{suggestion(unknown[0], fields)}")
    missing = [k for k, field in fields.items() if k not in values and field.default is MISSING]
    if missing:
        raise UserError(f"the key '{prefix}{missing[0]}' is missing from the configuration")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        raise UserError(f"{prefix}{error.full_key}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from error
