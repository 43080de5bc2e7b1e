"""The paper's network for retrieval: encoder, recurrent core, head (section 4.1)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fwrnn.config import ModelConfig
from fwrnn.interfaces import TaskSpec
from fwrnn.layers.initialization import linear
from fwrnn.models.cores import CORES, state_size


class SymbolEncoder(nn.Module):
    """Symbol → 50 numbers → 100 numbers.

    The paper gives these sizes, "a learned 50-d embedding, expanded to 100-d", and no more. Ours:
    nothing non-linear between the two, and embeddings that start as N(0, 1), PyTorch's default for
    a table that is looked up. Starting them in ±1/√50, or a ReLU after the expansion, made learning
    slower in single trial runs.
    """

    def __init__(self, vocabulary: int, embedding_size: int, encoding_size: int):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding_size)
        self.expansion = linear(embedding_size, encoding_size)

    def forward(self, symbols: Tensor) -> Tensor:
        """(…) integers → (…, encoding_size).

        Each of the few symbols is expanded once, and then looked up.
        """
        return F.embedding(symbols, self.expansion(self.embedding.weight))


class SequenceClassifier(nn.Module):
    """Encoder → recurrent core → the last step's output → ReLU layer → logits.

    Everything but the core is the same for all models, so that only the core is compared.
    """

    def __init__(self, spec: TaskSpec, config: ModelConfig):
        super().__init__()
        self.encoder = SymbolEncoder(spec.vocabulary, config.embedding_size, config.encoding_size)
        self.core = CORES[config.core](config, config.encoding_size)
        self.head = nn.Sequential(
            linear(config.hidden_size, config.head_size),
            nn.ReLU(),
            linear(config.head_size, spec.classes),
        )
        self.state_size = state_size(self.core, config.encoding_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Symbols (B, T) → logits (B, classes)."""
        outputs, _ = self.core(self.encoder(inputs.transpose(0, 1)))
        return self.head(outputs[-1])

    @property
    def parameter_count(self) -> int:
        """Learned numbers of the whole network."""
        return sum(parameter.numel() for parameter in self.parameters())


def build_model(config: ModelConfig, spec: TaskSpec) -> SequenceClassifier:
    """The network that a configuration describes, for a task's inputs and classes.

    Raises:
        ValueError: a setting that its core does not take.
    """
    return SequenceClassifier(spec, config)
