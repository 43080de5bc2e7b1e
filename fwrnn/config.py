"""The typed schema of every configuration. The values and what they mean are in ``conf/``.

A file in ``conf/task`` or ``conf/trainer`` names its schema by ``name``, one in ``conf/model`` by
``core``, so that several models can share one. A key with a default here came later than others:
runs that were recorded before it did without.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

Nonlinearity = Enum("Nonlinearity", ["relu", "tanh"])
Boundary = Enum("Boundary", ["sustained", "identity"])
InnerStart = Enum("InnerStart", ["candidate", "previous"])
ReadGain = Enum("ReadGain", ["unit", "layer", "fixed"])
Backend = Enum("Backend", ["auto", "matrix", "attention", "numba", "triton"])
Schedule = Enum("Schedule", ["constant", "linear", "cosine"])
SelectBy = Enum("SelectBy", ["val_loss", "val_error"])
Dataset = Enum("Dataset", ["mnist", "digits"])
Layout = Enum("Layout", ["synthetic", "multi_pie", "folders"])


@dataclass
class AssocRetrievalConfig:
    name: str
    pairs: int
    resample: bool
    train_size: int
    val_size: int
    test_size: int


@dataclass
class MnistGlimpsesConfig:
    name: str
    dataset: Dataset
    data_dir: str | None
    train_on_all: bool
    shift: float
    rotation: float


@dataclass
class FacialExpressionConfig:
    name: str
    layout: Layout
    data_dir: str | None
    cache_dir: str | None
    cameras: list[str]
    val_identities: int
    test_identities: int
    identities: int
    images_per_identity: int
    max_unreadable: float
    shift: float
    rotation: float


@dataclass
class CatchConfig:
    name: str
    size: int
    visible_frames: int


@dataclass(kw_only=True)
class ModelConfig:
    """What every model has: its width, the head, and how it is regularised."""

    name: str
    core: str
    hidden_size: int
    head_size: int | None
    input_dropout: float = 0.0
    encoding_dropout: float = 0.0
    head_dropout: float = 0.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if name.endswith("dropout") and not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value}; 0 turns it off")
            if name.endswith("_size") and value is not None:
                _at_least(1, name, value)


@dataclass(kw_only=True)
class RecurrentConfig(ModelConfig):
    """A recurrent core behind the shared encoder."""

    embedding_size: int | None
    encoding_size: int


@dataclass(kw_only=True)
class FastWeightsConfig(RecurrentConfig):
    decay: float
    fast_lr: float
    inner_steps: int
    nonlinearity: Nonlinearity
    layer_norm: bool
    boundary: Boundary
    inner_start: InnerStart
    read_gain: ReadGain = ReadGain.fixed  # of runs from before it could be learned
    backend: Backend


@dataclass(kw_only=True)
class MultiLevelConfig(RecurrentConfig):
    decay: float
    fast_lr: float
    inner_steps: int
    nonlinearity: Nonlinearity
    layer_norm: bool
    integration_dropout: float


@dataclass(kw_only=True)
class ConvNetConfig(ModelConfig):
    layers: int


@dataclass(kw_only=True)
class AssociativeLSTMConfig(RecurrentConfig):
    copies: int
    heads: int


@dataclass(kw_only=True)
class TrainerConfig:
    """What every trainer has: how long, how fast, and how often it looks."""

    name: str
    max_updates: int
    learning_rate: float
    schedule: Schedule
    warmup_updates: int
    clip_norm: float | None
    evaluate_every: int
    log_every: int
    patience: int | None

    def __post_init__(self):
        for name in ("max_updates", "evaluate_every", "log_every", "patience"):
            if getattr(self, name) is not None:
                _at_least(1, name, getattr(self, name))
        _at_least(0, "warmup_updates", self.warmup_updates)
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}; try 1e-3")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(
                f"clip_norm must be positive, got {self.clip_norm}; null turns clipping off"
            )


@dataclass(kw_only=True)
class SupervisedConfig(TrainerConfig):
    batch_size: int
    weight_decay: float
    label_smoothing: float
    average_decay: float | None
    select_by: SelectBy
    solved_loss: float | None
    adversarial_norm: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        _at_least(1, "batch_size", self.batch_size)
        for name in ("weight_decay", "adversarial_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if self.average_decay is not None and not 0 <= self.average_decay < 1:
            raise ValueError(
                f"average_decay must be at least 0 and below 1, got {self.average_decay}; "
                "null turns averaging off"
            )


@dataclass(kw_only=True)
class ActorCriticConfig(TrainerConfig):
    games: int
    discount: float
    n_steps: int | None
    value_cost: float
    entropy_cost: float
    entropy_until: float | None
    val_games: int
    test_games: int
    solved_reward: float | None

    def __post_init__(self):
        super().__post_init__()
        for name in ("games", "n_steps", "val_games", "test_games"):
            if getattr(self, name) is not None:
                _at_least(1, name, getattr(self, name))
        for name in ("discount", "entropy_until"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value}")
        for name in ("value_cost", "entropy_cost"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


@dataclass(kw_only=True)
class A3CConfig(ActorCriticConfig):
    workers: int

    def __post_init__(self):
        super().__post_init__()
        _at_least(1, "workers", self.workers)


@dataclass
class Config:
    task: Any
    model: Any
    trainer: Any
    seed: int
    device: str
    threads: int | None

    def __post_init__(self):
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 or more and below 2**63, got {self.seed}")
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise ValueError(
                f"threads must lie in 1 … 1024, got {self.threads}; null leaves it to PyTorch"
            )


SCHEMAS: dict[str, tuple[str, dict[str, type]]] = {
    "task": (
        "name",
        {
            "assoc_retrieval": AssocRetrievalConfig,
            "mnist_glimpses": MnistGlimpsesConfig,
            "facial_expression": FacialExpressionConfig,
            "catch": CatchConfig,
        },
    ),
    "model": (
        "core",
        {
            "fast_weights": FastWeightsConfig,
            "multilevel": MultiLevelConfig,
            "lstm": RecurrentConfig,
            "rnn": RecurrentConfig,
            "irnn": RecurrentConfig,
            "associative_lstm": AssociativeLSTMConfig,
            "convnet": ConvNetConfig,
        },
    ),
    "trainer": (
        "name",
        {"supervised": SupervisedConfig, "a2c": ActorCriticConfig, "a3c": A3CConfig},
    ),
}
"""Per group, the key that names the schema, and the schemas."""


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}")
