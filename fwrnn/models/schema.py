"""The settings of every model: what its core takes, under the same names. Does not import torch.

A core = one class here, one line in ``fwrnn.config.CORES``, one YAML in ``conf/model``.
"""

from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, ClassVar

from fwrnn.config import added_settings, at_least, at_most
from fwrnn.rule import BACKENDS, READ_GAINS, Rule, one_of

if TYPE_CHECKING:
    from torch import nn

    from fwrnn.interfaces import TaskSpec
    from fwrnn.models.network import Network

MOST_REPEATS = 1000
"""Inner steps, copies or heads: more would seem to hang."""


@dataclass(kw_only=True)
class ModelConfig:
    """What every model has: its width, the head, and how it is regularised.

    ``takes`` are the kinds of inputs that it can be built for, see ``TaskConfig.shows``.
    """

    name: str
    core: str
    hidden_size: int
    head_size: int | None
    input_dropout: float = 0.0
    encoding_dropout: float = 0.0
    head_dropout: float = 0.0

    takes: ClassVar[tuple[str, ...]] = ("symbols", "images", "screens")

    def __post_init__(self):
        for name, value in vars(self).items():
            if name.endswith("dropout") and not 0 <= value < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {value}; 0 turns it off")
            if name.endswith("_size"):
                at_least(1, name, value)

    @property
    def state_size(self) -> int:
        """How many numbers it carries from step to step for one sequence."""
        raise NotImplementedError

    def classifier(self, spec: "TaskSpec") -> "Network":
        """The network that names a class. Raises ValueError for a setting out of range."""
        raise NotImplementedError


@dataclass(kw_only=True)
class RecurrentConfig(ModelConfig):
    """A recurrent core behind the shared encoder.

    A core maps (T, B, I) to states (…, B, H), the last of which is what the head sees, and to what
    it would go on from, as ``torch.nn.RNN`` does. ``makes`` is its class, as "module:class".
    """

    embedding_size: int | None
    encoding_size: int

    makes: ClassVar[str]

    @property
    def state_size(self) -> int:
        return self.hidden_size

    def build(self, input_size: int) -> "nn.Module":
        """The core. Raises ValueError for a setting out of range."""
        settings = added_settings(self, RecurrentConfig)
        return resolve_name(self.makes)(input_size, self.hidden_size, **settings)

    def classifier(self, spec: "TaskSpec") -> "Network":
        from fwrnn.models.classifiers import SequenceClassifier

        return SequenceClassifier(spec, self)

    def player(self, spec: "TaskSpec") -> "Network":
        """The network that plays, a policy and a value."""
        from fwrnn.models.actor_critic import ActorCritic

        return ActorCritic(spec, self)


@dataclass(kw_only=True)
class RememberingConfig(RecurrentConfig):
    """What both models with a fast memory have; constants are checked as those of the ``Rule``."""

    decay: float
    fast_lr: float
    inner_steps: int
    nonlinearity: str
    layer_norm: bool

    def __post_init__(self):
        super().__post_init__()
        at_most(MOST_REPEATS, "inner_steps", self.inner_steps)
        names = Rule.__dataclass_fields__
        Rule(**{name: value for name, value in vars(self).items() if name in names})

    @property
    def state_size(self) -> int:
        return self.hidden_size + self.hidden_size**2


@dataclass(kw_only=True)
class FastWeightsConfig(RememberingConfig):
    boundary: str
    inner_start: str
    read_gain: str = "fixed"  # of runs from before it could be learned
    backend: str

    makes = "fwrnn.layers:FastWeightsRNN"

    def __post_init__(self):
        super().__post_init__()
        if self.inner_start == "normalised" and not self.layer_norm:
            raise ValueError(
                "inner_start=normalised needs layer_norm=true: without it h_0 is what it is with "
                "inner_start=candidate"
            )
        one_of("read_gain", self.read_gain, READ_GAINS)
        one_of("backend", self.backend, ("auto", *BACKENDS))


@dataclass(kw_only=True)
class MultiLevelConfig(RememberingConfig):
    integration_dropout: float

    takes = ("images",)

    def build(self, input_size: int) -> "nn.Module":
        from fwrnn.layers import MultiLevelFastWeights
        from fwrnn.models.glimpses import FINE

        settings = added_settings(self, RecurrentConfig)
        settings["dropout"] = settings.pop("integration_dropout")
        return MultiLevelFastWeights(input_size, self.hidden_size, FINE, **settings)


@dataclass(kw_only=True)
class LSTMConfig(RecurrentConfig):
    makes = "torch.nn:LSTM"

    @property
    def state_size(self) -> int:
        return 2 * self.hidden_size


@dataclass(kw_only=True)
class RNNConfig(RecurrentConfig):
    def build(self, input_size: int) -> "nn.Module":
        from torch import nn

        return nn.RNN(input_size, self.hidden_size, nonlinearity="relu")


@dataclass(kw_only=True)
class IRNNConfig(RecurrentConfig):
    makes = "fwrnn.layers:IRNN"


@dataclass(kw_only=True)
class AssociativeLSTMConfig(RecurrentConfig):
    copies: int
    heads: int

    makes = "fwrnn.layers:AssociativeLSTM"

    def __post_init__(self):
        super().__post_init__()
        for name in ("copies", "heads"):
            at_most(MOST_REPEATS, name, getattr(self, name))

    @property
    def state_size(self) -> int:
        return (1 + self.copies) * self.hidden_size


@dataclass(kw_only=True)
class ConvNetConfig(ModelConfig):
    layers: int

    takes = ("images",)

    @property
    def state_size(self) -> int:
        return 0

    def classifier(self, spec: "TaskSpec") -> "Network":
        from fwrnn.models.classifiers import GlimpseConvNet

        return GlimpseConvNet(spec, self)
