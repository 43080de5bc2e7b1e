"""A checked configuration from overrides, as the command line would make it."""

from fwrnn.commands.composition import compose_config as compose

__all__ = ["compose"]
