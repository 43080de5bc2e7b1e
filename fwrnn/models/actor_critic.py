"""The network that plays: screen → ReLU layer → recurrent core → policy and value (section 4.4)."""

from typing import NamedTuple

from torch import Tensor, nn

from fwrnn.interfaces import TaskSpec
from fwrnn.layers.initialization import linear
from fwrnn.models.encoders import build_encoder
from fwrnn.models.network import Network
from fwrnn.models.schema import RecurrentConfig


class Play(NamedTuple):
    """What a player makes of T screens of each of N games.

    ``logits`` (T, N, actions) of the policy, ``values`` (T, N), the return that it expects, and
    the ``state`` to go on from, whatever the core hands on.
    """

    logits: Tensor
    values: Tensor
    state: object


class ActorCritic(Network):
    """Policy and value share everything up to the core's output.

    A rollout passes one screen at a time and the state on; an update passes whole games. Ours:
    policy and value start as PyTorch's linear layers do, uniform in ±1/√inputs. The paper's rule
    for its other weights, ±1/√outputs, would start with a policy that is sure of itself and values
    far outside of what a game can bring.
    """

    def __init__(self, spec: TaskSpec, config: RecurrentConfig):
        for name in ("input_dropout", "encoding_dropout", "head_dropout"):
            if getattr(config, name):
                raise ValueError(
                    f"{name} must be 0 for games, got {getattr(config, name)}: an update has to "
                    "see the policy that played"
                )
        super().__init__()
        self.encoder = build_encoder(spec.inputs, config)
        self.core, self.state_size = config.build(config.encoding_size), config.state_size
        width = config.head_size or config.hidden_size
        self.head = nn.Identity()
        if config.head_size:
            self.head = nn.Sequential(linear(config.hidden_size, width), nn.ReLU())
        self.policy, self.value = nn.Linear(width, len(spec.labels)), nn.Linear(width, 1)

    def forward(self, screens: Tensor, state=None) -> Play:
        """Screens (T, N, S, S), 0 or 1, of games that stand at ``state``, or begin."""
        outputs, state = self.core(self.encoder(screens), state)
        outputs = self.head(outputs)
        return Play(self.policy(outputs), self.value(outputs).squeeze(-1), state)
