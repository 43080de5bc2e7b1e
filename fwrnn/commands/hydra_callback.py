"""What Hydra calls when a sweep begins: nobody else knows its folder before there is a job."""

from collections.abc import Callable
from pathlib import Path

from hydra.experimental.callback import Callback

from fwrnn.files import from_here


class SweepBegins(Callback):
    tell: Callable[[Path, bool], None]

    def on_multirun_start(self, config, **unused) -> None:
        SweepBegins.tell(from_here(config.hydra.sweep.dir), side_by_side(config.hydra.launcher))


def side_by_side(launcher) -> bool:
    """Whether it has processes of this machine work on several jobs at once."""
    return "joblib" in launcher._target_
