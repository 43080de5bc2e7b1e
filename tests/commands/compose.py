"""A checked configuration from overrides, as the command line would make it."""

from fwrnn.commands.composition import compose_config as compose
from fwrnn.commands.composition import composed
from fwrnn.config import read_config
from fwrnn.models.schema import ModelConfig

__all__ = ["compose", "model_config"]


def model_config(*overrides: str) -> ModelConfig:
    """The model's part alone, whatever task it is for."""
    return read_config(composed(overrides), groups=("model",)).model
