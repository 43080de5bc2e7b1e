"""Training the runs that are missing, several at once, each in a process of its own.

Each is a sweep of one job, so that a run which is done is kept and one which was begun goes on, bit
for bit, however this process and those ended.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event

from fwrnn.files import WINDOWS
from fwrnn.learning.claim import holder
from fwrnn.reproduction.targets import Cell


@dataclass(frozen=True)
class Job:
    """A run to be made: of this cell, with this seed, below this folder."""

    cell: Cell
    seed: int
    root: Path
    more: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return self.root / self.cell.folder / f"seed{self.seed}"

    @property
    def command(self) -> list[str]:
        return [
            sys.executable, "-m", "fwrnn", "train", "-m", *self.cell.train, f"seed={self.seed}",
            "threads=1", "device=cpu", *self.more,
            f"hydra.sweep.dir={self.root / self.cell.folder}", "hydra.sweep.subdir=seed${seed}",
        ]  # fmt: skip


def set_aside(folder: Path) -> None:
    """Give a run another name, so that it is made again."""
    for n in count(1):
        other = folder.with_name(f"{folder.name}-outdated{n}")
        if not other.exists():
            folder.rename(other)
            return


def train(jobs: Sequence[Job], at_once: int, done: Callable[[Job, str | None], None]) -> None:
    """Do all jobs; ``done`` gets each, with what went wrong or None.

    Raises:
        KeyboardInterrupt: Ctrl-C, after every run saved its state; or a second one, at once.
    """
    running: set[subprocess.Popen] = set()
    stopped = Event()
    with ThreadPoolExecutor(at_once) as pool:
        waiting = {pool.submit(_run, job, running, stopped): job for job in jobs}
        try:
            for future in as_completed(waiting):
                done(waiting[future], future.result())
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            _interrupt(running)  # upon which they save their states
            try:
                for process in list(running):
                    process.wait()
            except KeyboardInterrupt:
                _interrupt(running)  # upon which they do not wait for that
                raise
            raise


def _interrupt(processes: set[subprocess.Popen]) -> None:
    if not WINDOWS:  # where Ctrl-C comes to all that share the terminal
        for process in list(processes):
            process.send_signal(signal.SIGINT)


def _run(job: Job, running: set[subprocess.Popen], stopped: Event) -> str | None:
    """Make a run, unless ``stopped`` is set before; returns what went wrong, or None."""
    while holder(job.folder) and not stopped.wait(1):
        pass  # of an earlier call that was killed, its trainings live on
    if stopped.is_set():
        return "stopped"
    process = subprocess.Popen(
        job.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8",
        errors="replace",  # a path may be in letters of another encoding
        start_new_session=True,  # Ctrl-C is for this process, which then tells the others, once
    )  # fmt: skip
    running.add(process)
    if stopped.is_set():  # since, so that nobody told this one
        _interrupt({process})
    try:
        _, said = process.communicate()
    finally:
        running.discard(process)
    if (job.folder / "metrics.json").is_file():  # whatever else is to do in its sweep
        return None
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "go on with" not in line), "no word of why")
