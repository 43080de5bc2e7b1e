"""What Hydra calls when a sweep begins: nobody else knows its folder before there is a job."""

import os
from collections.abc import Callable
from pathlib import Path

from hydra.experimental.callback import Callback


class SweepBegins(Callback):
    tell: Callable[[Path, bool], None]

    def on_multirun_start(self, config, **unused) -> None:
        folder = Path(os.path.relpath(config.hydra.sweep.dir))
        SweepBegins.tell(folder, side_by_side(config.hydra.launcher))


def side_by_side(launcher) -> bool:
    """Whether it has processes of this machine work on several jobs at once."""
    return "joblib" in launcher._target_
