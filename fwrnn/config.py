"""The typed schema of every configuration, and its reader. Imports neither torch nor Hydra.

The values and what they mean are in ``conf/``. A file in ``conf/task`` or ``conf/trainer`` names
its schema by ``name``, one in ``conf/model`` by ``core``, so that several models can share one. A
key with a default came later than others: runs that were recorded before it did without.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fwrnn.errors import UserError, printable, suggestion
from fwrnn.registry import Registry

TASKS = Registry("fwrnn.tasks", {
    "assoc_retrieval": "fwrnn.tasks.schema:AssocRetrievalConfig",
    "mnist_glimpses": "fwrnn.tasks.schema:MnistGlimpsesConfig",
    "facial_expression": "fwrnn.tasks.schema:FacialExpressionConfig",
    "catch": "fwrnn.tasks.schema:CatchConfig",
})  # fmt: skip
CORES = Registry("fwrnn.cores", {
    "fast_weights": "fwrnn.models.schema:FastWeightsConfig",
    "multilevel": "fwrnn.models.schema:MultiLevelConfig",
    "lstm": "fwrnn.models.schema:LSTMConfig",
    "rnn": "fwrnn.models.schema:RNNConfig",
    "irnn": "fwrnn.models.schema:IRNNConfig",
    "associative_lstm": "fwrnn.models.schema:AssociativeLSTMConfig",
    "convnet": "fwrnn.models.schema:ConvNetConfig",
})  # fmt: skip
TRAINERS = Registry("fwrnn.trainers", {
    "supervised": "fwrnn.learning.schema:SupervisedConfig",
    "a2c": "fwrnn.learning.schema:ActorCriticConfig",
    "a3c": "fwrnn.learning.schema:A3CConfig",
})  # fmt: skip
GROUPS = {"task": ("name", TASKS), "model": ("core", CORES), "trainer": ("name", TRAINERS)}
"""Per group, the key that names the schema, and the schemas."""


@dataclass
class Config:
    """A whole configuration. A group that was not read is None."""

    task: Any
    model: Any
    trainer: Any
    seed: int
    device: str
    threads: int | None
    control: str = "none"

    def __post_init__(self):
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 or more and below 2**63, got {self.seed}")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ValueError(
                f"threads must lie in 1 … 1024, got {self.threads}; null leaves it to PyTorch"
            )
        dropout = getattr(self.model, "input_dropout", 0)
        if dropout and self.task is not None and self.task.shows != "images":
            raise ValueError(
                f"model.input_dropout is for pixels, which task {self.task.name} has not; set it "
                "to 0"
            )


def network_label(model: str, control: str) -> str:
    """A network's name in folders and words: fast_weights, or fast_weights_folded as a control."""
    return printable(model if control == "none" else f"{model}_{control}")


def at_least(least: int, name: str, value: float | None) -> None:
    """Raises ValueError when ``value`` of the key ``name`` is below ``least``, or not finite."""
    if value is not None and not least <= value < math.inf:
        raise ValueError(f"{name} must be {least} or more, got {value}")


def at_most(most: int, name: str, value: int) -> None:
    """Raises ValueError when ``value`` of the key ``name`` is above ``most``."""
    if value > most:
        raise ValueError(f"{name} must be {most:,} or less, got {value}")


def added_settings(config: object, base: type) -> dict[str, Any]:
    """The settings, by name, that a configuration's class adds to those of ``base``."""
    shared = keys_of(base)
    return {name: value for name, value in vars(config).items() if name not in shared}


def keys_of(schema: type) -> dict[str, Field]:
    """The keys of a schema."""
    return {field.name: field for field in fields(schema)}


def known_keys() -> list[str]:
    """Every key that ``fwrnn train`` knows, as one would write it on the command line."""
    keys = [*keys_of(Config), "resume", "experiment"]
    for group, (_, schemas) in GROUPS.items():
        for schema in schemas.values():
            keys += [f"{group}.{name}" for name in keys_of(schema)]
    return keys


def read_config(values: DictConfig | dict, groups: Iterable[str] = tuple(GROUPS)) -> Config:
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
    schemas = {group: _schema_of(group, plain.get(group)) for group in groups}
    _check_fit(schemas, plain)
    for group in GROUPS:
        given = plain.pop(group, None)
        plain[group] = _read_group(group, schemas[group], given) if group in groups else None
    return _typed("", Config, plain)


def migrated(values: dict) -> dict:
    """What was saved by an earlier version, as this one spells it.

    Raises:
        UserError: what it says cannot be spelled so.
    """
    once = {
        "rnn_layer_norm": "no_memory",
        "fast_weights_folded": "folded",
        "fast_weights_no_layer_norm": "no_layer_norm",
    }
    values, model, trainer = dict(values), values.get("model"), values.get("trainer")
    if isinstance(model, dict) and str(model.get("name")) in once:
        values["control"] = once[model["name"]]
        values["model"] = {**model, "name": "fast_weights"}
    if isinstance(trainer, dict) and "warmup_updates" in trainer:  # before it was a share
        try:
            share = trainer["warmup_updates"] / trainer["max_updates"]
        except (ArithmeticError, KeyError, TypeError):
            raise UserError("trainer.warmup_updates is no part of trainer.max_updates") from None
        rest = {key: value for key, value in trainer.items() if key != "warmup_updates"}
        values["trainer"] = {**rest, "warmup": share}
    return values


def changed(values: dict, changes: Mapping[str, Any]) -> dict:
    """A saved configuration with settings, by their dotted keys, in the place of its own."""
    config = OmegaConf.create(values)
    for key, value in changes.items():
        try:
            OmegaConf.update(config, key, value, force_add=True)
        except OmegaConfBaseException as error:
            raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
    return cast(dict, OmegaConf.to_container(config))


def _schema_of(group: str, values: Any) -> type:
    key, schemas = GROUPS[group]
    if not isinstance(values, dict):
        raise UserError(f"{group} needs an option, got {values!r}; see fwrnn train --help")
    name = str(values.get(key))[:80]
    if name not in schemas:
        raise UserError(
            f"unknown {group}.{key} '{name}'{suggestion(name, schemas)} Known: {', '.join(schemas)}"
        )
    return schemas[name]


def _check_fit(schemas: dict[str, type], values: dict) -> None:
    """Raises UserError when the model cannot see what the task shows, or the trainer not teach it.

    Before anything else is read: what a task chooses for all models may be for none but those.
    """
    task, model, trainer = (schemas.get(group) for group in ("task", "model", "trainer"))
    name = values["task"]["name"] if task else None
    if task and model and task.shows not in model.takes:
        tasks = [name for name, other in TASKS.items() if other.shows in model.takes]
        models = [name for name, other in CORES.items() if task.shows in other.takes]
        raise UserError(
            f"model {values['model'].get('name')} looks at {' or '.join(model.takes)}, and task "
            f"{name} shows {task.shows}; choose task={' or '.join(tasks)}, or "
            f"model={' or '.join(models)}"
        )
    if task and trainer and task.kind != trainer.kind:
        fitting = [name for name, other in TRAINERS.items() if other.kind == task.kind]
        raise UserError(
            f"trainer={values['trainer']['name']} is not for task {name}; choose "
            f"trainer={' or '.join(fitting)}"
        )


def _read_group(group: str, schema: type, values: dict) -> Any:
    key, schemas = GROUPS[group]
    for field in (name for name in values if name not in keys_of(schema)):
        takers = [name for name, other in schemas.items() if field in keys_of(other)]
        if takers:
            raise UserError(
                f"{group}.{field} is not for {key} '{values[key]}'; choose "
                f"{group}={' or '.join(takers)}, or another task or control"
            )
    return _typed(f"{group}.", schema, values)


def _typed(prefix: str, schema: type, values: dict) -> Any:
    """``schema(**values)`` with OmegaConf's conversions, and its complaints in one line."""
    keys = keys_of(schema)
    unknown = [str(key) for key in values if key not in keys]
    if unknown:
        raise UserError(f"unknown key '{prefix}{unknown[0]}'{suggestion(unknown[0], keys)}")
    missing = [k for k, field in keys.items() if k not in values and field.default is MISSING]
    if missing:
        raise UserError(f"the key '{prefix}{missing[0]}' is missing from the configuration")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except OmegaConfBaseException as error:
        raise UserError(f"{prefix}{error.full_key}: {str(error).splitlines()[0]}") from error
    except ValueError as error:
        raise UserError(f"{prefix}{error}") from error
