"""From a command line to a checked configuration: Hydra, and its errors in one line each."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fwrnn.config import SCHEMAS, Config
from fwrnn.errors import UserError, suggestion

_SWITCHES = {"-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run"}
_SWITCHES |= {"-m", "--multirun", "-sc", "--shell-completion"}
_TAKING = {"-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name"}
_TAKING |= {"-cd", "--config-dir", "-i", "--info", "--experimental-rerun"}


def conf_dir() -> Path:
    """The folder of the shipped configurations: inside an installed package, else beside it."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def run_with_hydra(job: Callable[[DictConfig], Any], argv: list[str]) -> None:
    """Compose a configuration from ``argv`` and call ``job`` with it, or once per job of a sweep.

    Raises:
        UserError: the command line or a configuration is wrong.
        Exception: what ``job`` raised; in a sweep the first, once all of its jobs have run.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    import hydra
    from hydra.errors import HydraException

    failures: list[Exception] = []

    def guarded(config: DictConfig) -> Any:
        # Hydra would print the overrides of a failed job before the error gets here.
        try:
            return job(config)
        except Exception as error:
            failures.append(error)
            return float("nan")

    sys.argv = ["fwrnn train", *_options_first(argv)]
    entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
    try:
        entry(guarded)()
    except (HydraException, OmegaConfBaseException, ValueError, AssertionError) as error:
        raise UserError(explain(error)) from error
    if failures:
        raise failures[0]


def _options_first(argv: list[str]) -> list[str]:
    """Options before overrides, the one order that Hydra's parser reads."""
    options, overrides, rest = [], [], list(argv)
    while rest:
        word = rest.pop(0)
        name = word.split("=")[0]
        if not word.startswith("-"):
            overrides.append(word)
        elif name in _SWITCHES or name in _TAKING:
            options.append(word)
            if name in _TAKING and "=" not in word and rest and "=" not in rest[0]:
                options.append(rest.pop(0))
        else:
            raise UserError(
                f"unknown option '{word}'{suggestion(word, _SWITCHES | _TAKING)} "
                "Settings are written KEY=VALUE, without dashes"
            )
    for word in overrides:
        key, assigned, value = word.partition("=")
        if not assigned and not word.startswith("~"):
            raise UserError(f"'{word}' is not a setting; settings are written KEY=VALUE")
        if key in SCHEMAS and value in ("", "null"):
            raise UserError(f"{key} needs an option, got '{word}'; see fwrnn train --help")
    return options + overrides


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
        return f"unknown key '{wrong}'{suggestion(wrong, known_keys())}"
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


def read_config(values: DictConfig | dict) -> Config:
    """A checked ``Config`` from a composed or a saved configuration.

    Raises:
        UserError: a key that the schema lacks, a missing one, a value of a wrong type or out of
            range, or a group set to null.
    """
    plain = OmegaConf.create(values)
    plain = OmegaConf.to_container(plain, resolve=True)
    for key in ("resume", "experiment"):
        plain.pop(key, None)
    groups = {group: _read_group(group, plain.pop(group, None)) for group in SCHEMAS}
    return _typed("", Config, {**plain, **groups})


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
    return _typed(f"{group}.", schemas[name], values)


def _typed(prefix: str, schema: type, values: dict) -> Any:
    """``schema(**values)`` with OmegaConf's conversions, and its complaints in one line."""
    fields = schema.__dataclass_fields__
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise UserError(f"unknown key '{prefix}{unknown[0]}'{suggestion(unknown[0], fields)}")
    missing = [name for name in fields if name not in values]
    if missing:
        raise UserError(f"the key '{prefix}{missing[0]}' is missing from the configuration")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        raise UserError(f"{prefix}{error.full_key}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from error
