"""What Hydra calls when a sweep begins: nobody else knows its folder before there is a job."""

import os
from pathlib import Path

from hydra.experimental.callback import Callback

from fwrnn.commands import composition


class SweepBegins(Callback):
    def on_multirun_start(self, config, **unused) -> None:
        apart = composition.side_by_side(config.hydra.launcher)
        composition.sweep_begins(Path(os.path.relpath(config.hydra.sweep.dir)), apart)
