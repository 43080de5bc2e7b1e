"""From what a task shows to what a recurrent core takes: (T, B, encoding_size)."""

import torch.nn.functional as F
from torch import Tensor, nn

from fwrnn.interfaces import Images, Screens, Symbols
from fwrnn.layers.initialization import linear
from fwrnn.models import glimpses
from fwrnn.models.schema import RecurrentConfig


class SymbolEncoder(nn.Module):
    """Symbol → 50 numbers → 100 numbers, per step.

    The paper gives these sizes, "a learned 50-d embedding, expanded to 100-d", and no more. Ours:
    nothing non-linear between the two, and embeddings that start as N(0, 1), PyTorch's default for
    a table that is looked up. Starting them in ±1/√50, or a ReLU after the expansion, made learning
    slower in single trial runs.
    """

    def __init__(self, inputs: Symbols, config: RecurrentConfig):
        embedding_size = _embedding_size(config)
        super().__init__()
        self.embedding = nn.Embedding(inputs.vocabulary, embedding_size)
        self.expansion = linear(embedding_size, config.encoding_size)
        self.dropout = nn.Dropout(config.encoding_dropout)

    def forward(self, symbols: Tensor) -> Tensor:
        """(B, T) integers → (T, B, encoding_size).

        Each of the few symbols is expanded once, and then looked up. The gradient of
        ``index_select`` takes half the time of ``embedding``'s, and on a GPU has no certain order.
        """
        expanded, symbols = self.expansion(self.embedding.weight), symbols.transpose(0, 1)
        if not symbols.is_cpu:
            return self.dropout(F.embedding(symbols, expanded))
        encoded = expanded.index_select(0, symbols.flatten())
        return self.dropout(encoded.view(*symbols.shape, expanded.shape[1]))


class GlimpseEncoder(nn.Module):
    """Image → 24 glimpses → 50 numbers → 100 numbers, per glimpse.

    The sizes are those of the retrieval task; the paper gives none for images. Ours too: a ReLU
    after each of the two, layer normalisation before the second, which lowered the validation error
    of the multi-level model in single runs, and dropout of pixels and of encodings.
    """

    def __init__(self, inputs: Images, config: RecurrentConfig):
        embedding_size = _embedding_size(config)
        super().__init__()
        self.embedding = linear(glimpses.patch_size(inputs) ** 2, embedding_size)
        self.expansion = nn.Sequential(
            linear(embedding_size, config.encoding_size),
            nn.LayerNorm(config.encoding_size),
        )
        self.pixel_dropout = nn.Dropout(config.input_dropout)
        self.dropout = nn.Dropout(config.encoding_dropout)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 4P, 4P) bytes → (24, B, encoding_size)."""
        embedded = self.embedding(self.pixel_dropout(glimpses.cut(images))).relu()
        return glimpses.in_order(self.dropout(self.expansion(embedded).relu()))


class ScreenEncoder(nn.Sequential):
    """Screen → 128 ReLU units, the paper's; ``embedding_size``, where given, goes between.

    (T, B, S, S) bytes → (T, B, encoding_size).
    """

    def __init__(self, inputs: Screens, config: RecurrentConfig):
        layers, width = [], inputs.size**2
        for size in (config.embedding_size, config.encoding_size):
            if size is not None:
                layers += [linear(width, size), nn.ReLU()]
                width = size
        super().__init__(*layers)

    def forward(self, screens: Tensor) -> Tensor:
        return super().forward(screens.flatten(2).float())


def build_encoder(inputs: Symbols | Images | Screens, config: RecurrentConfig) -> nn.Module:
    """The encoder for what a task shows."""
    match inputs:
        case Symbols():
            return SymbolEncoder(inputs, config)
        case Images():
            return GlimpseEncoder(inputs, config)
        case Screens():
            return ScreenEncoder(inputs, config)


def _embedding_size(config: RecurrentConfig) -> int:
    if config.embedding_size is None:
        raise ValueError("embedding_size must be a number for this task, got null; try 50")
    return config.embedding_size
