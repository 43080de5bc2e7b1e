"""The networks that name a class: what sees the inputs, and one head for all (section 4)."""

from torch import Tensor, nn

from fwrnn.interfaces import Images, TaskSpec
from fwrnn.layers.initialization import linear
from fwrnn.models import glimpses
from fwrnn.models.encoders import build_encoder
from fwrnn.models.network import Network
from fwrnn.models.schema import ConvNetConfig, ModelConfig, RecurrentConfig


class Classifier(Network):
    """A body that ends in ``hidden_size`` features → ReLU layer → logits.

    The head is the same for all models. Without a ``head_size`` it lacks the ReLU layer.
    """

    def add_head(self, spec: TaskSpec, config: ModelConfig) -> None:
        """To be called last: the head's first weights are drawn after those of the body."""
        width = config.head_size or config.hidden_size
        hidden = [linear(config.hidden_size, width), nn.ReLU()] if config.head_size else []
        self.head = nn.Sequential(*hidden, linear(width, len(spec.labels)))
        self.head_dropout = nn.Dropout(config.head_dropout)

    def features(self, inputs: Tensor) -> Tensor:
        """Inputs (B, …) → (B, hidden_size)."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (B, …) → logits (B, classes)."""
        return self.head(self.head_dropout(self.features(inputs)))


class SequenceClassifier(Classifier):
    """Encoder → recurrent core → the last state. Only the core differs from model to model."""

    def __init__(self, spec: TaskSpec, config: RecurrentConfig):
        super().__init__()
        self.encoder = build_encoder(spec.inputs, config)
        self.core, self.state_size = config.build(config.encoding_size), config.state_size
        self.add_head(spec, config)

    def features(self, inputs: Tensor) -> Tensor:
        outputs, _ = self.core(self.encoder(inputs))
        return outputs[-1]


class GlimpseConvNet(Classifier):
    """The paper's other baseline: a convolutional network on the same glimpses.

    "Three layers" for MNIST, "two with 12×12 receptive fields" for faces is all that the paper
    says. Ours: the first layer has the P×P glimpses, fine and coarse, as its receptive fields, with
    the same filters for all; of three layers the second joins what it found in a quadrant and the
    third the four quadrants, of two the second joins everything. Each has ``hidden_size`` filters
    and a ReLU. ``encoding_dropout`` acts between the layers.
    """

    def __init__(self, spec: TaskSpec, config: ConvNetConfig):
        if config.layers not in (2, 3):
            raise ValueError(f"layers must be 2 or 3, got {config.layers}")
        assert isinstance(spec.inputs, Images)  # the schema takes no others
        super().__init__()
        self.state_size = config.state_size
        filters, quadrant = config.hidden_size, (1 + glimpses.FINE) * config.hidden_size
        self.pixel_dropout = nn.Dropout(config.input_dropout)
        self.dropout = nn.Dropout(config.encoding_dropout)
        self.glimpse = linear(glimpses.patch_size(spec.inputs) ** 2, filters)
        self.quadrant = linear(quadrant, filters) if config.layers == 3 else None
        joined = filters if config.layers == 3 else quadrant
        self.image = linear(glimpses.QUADRANTS * joined, filters)
        self.add_head(spec, config)

    def features(self, inputs: Tensor) -> Tensor:
        seen = self.glimpse(self.pixel_dropout(glimpses.cut(inputs))).relu()  # (20, B, filters)
        seen = self.dropout(seen).unflatten(0, (glimpses.QUADRANTS, -1))
        seen = seen.transpose(1, 2).flatten(2)  # (4, B, 5 · filters)
        if self.quadrant is not None:
            seen = self.dropout(self.quadrant(seen).relu())
        return self.image(seen.transpose(0, 1).flatten(1)).relu()
