"""A checked configuration from overrides, as the command line would make it."""

from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from fwrnn.commands.composition import conf_dir, read_config
from fwrnn.config import Config


def compose(*overrides: str) -> Config:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return read_config(hydra_compose("config", list(overrides)))
