"""A sweep's jobs, what became of each, and going on with those that are not done.

``sweep.json`` in the sweep's folder has the command, others that added jobs to it before, and, by
the overrides of each job, its state (waiting, running, done, failed, interrupted), its cause if it
failed, and its folder. Whoever works on a job, in whatever process, keeps its entry up to date.
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from fwrnn.comparison.found import places
from fwrnn.errors import RunFailed, UserError, printable
from fwrnn.files import quoted, unwritable, write_whole
from fwrnn.learning.claim import LOCK, Taken, holder
from fwrnn.reading import LARGEST_SWEEP, read_json

PATIENCE, A_MOMENT = 5.0, 0.3  # seconds, with jobs that do not end, and with those that do
A_START = 60.0  # seconds in which a job that begins has taken its folder
_SHARED = (
    "'{folder}' is that of the job '{other}', too; have folders named by what differs, such as "
    "'hydra.sweep.subdir=${{model.name}}-${{trainer.learning_rate}}/${{seed}}'"
)
STATES = "done", "failed", "interrupted", "running", "waiting"


class Sweep:
    """The record of a sweep in ``folder``."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.file = self.folder / "sweep.json"
        self._before: dict = {}  # the record without what ``begin`` noted

    def read(self) -> dict:
        """Raises UserError when there is no sweep, or its file is broken."""
        try:
            content = read_json(self.file, LARGEST_SWEEP)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"there is no sweep at '{self.folder}': no sweep.json") from None
        except (OSError, UserError) as error:
            raise UserError(f"{self.file} is broken: {error}") from None
        command, jobs = content.get("command"), content.get("jobs")
        earlier = content.get("earlier", [])
        commands = [command, *earlier] if isinstance(earlier, list) else [None]
        for words in commands:
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise UserError(f"{self.file} is broken: its command is not a list of words")
        if not isinstance(jobs, dict) or not all(_is_job(job) for job in jobs.values()):
            raise UserError(f"{self.file} is broken: a job in it has no state that is known")
        return {"command": command, "earlier": earlier, "jobs": jobs}

    def begin(self, command: list[str], jobs: list[list[str]]) -> None:
        """Note the command, and those of its jobs that are not known yet, as waiting."""
        command = [word for word in command if not word.startswith("hydra.sweep.dir=")]

        def note(content: dict) -> None:
            self._before = {**content, "jobs": dict(content["jobs"])}
            before = [words for words in (content["command"], *content["earlier"]) if words]
            content["command"] = command
            content["earlier"] = [words for words in before if words != command]
            for overrides in jobs:
                waiting = {"state": "waiting", "cause": None, "folder": None}
                content["jobs"].setdefault(" ".join(overrides), waiting)

        self._change(note)

    def take_back(self) -> None:
        """Forget a command that could not be composed, unless something came of it."""

        def note(content: dict) -> None:
            known = self._before["jobs"]
            new = [name for name in content["jobs"] if name not in known]
            if all(content["jobs"][name]["state"] == "waiting" for name in new):
                for name in new:
                    del content["jobs"][name]
                content |= {name: self._before[name] for name in ("command", "earlier")}

        self._change(note)
        if not self.read()["command"]:
            self.file.unlink()

    def is_done(self, overrides: list[str]) -> bool:
        """Whether this job is done already."""
        jobs = self.read()["jobs"] if self.file.exists() else {}
        return jobs.get(" ".join(overrides), {}).get("state") == "done"

    def set(self, overrides: list[str], **what: Any) -> None:
        """Note what became of a job."""
        self._change(
            lambda content: content["jobs"].setdefault(" ".join(overrides), {}).update(what)
        )

    def _change(self, change: Callable[[dict], None]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = FileLock(self.folder / ".sweep.lock").acquire()
        except OSError as error:
            instead = "hydra.sweep.dir=DIR chooses another folder"
            raise unwritable(self.folder, error, instead) from error
        with held:
            there = self.file.exists()
            content = self.read() if there else {"command": [], "earlier": [], "jobs": {}}
            change(content)
            write_whole(self.file, (json.dumps(content, indent=2) + "\n").encode())

    @contextmanager
    def saving_first(self) -> Iterator[None]:
        """While open, Ctrl-C ends this process when the jobs, in processes of their own, have saved
        their states as it came to them too: who ends this one ends them. At a second one they give
        that up.
        """
        if threading.current_thread() is not threading.main_thread():  # to which signals come
            yield
            return
        end = 0.0

        def receive(number, frame) -> None:
            nonlocal end
            if end:
                end = min(end, time.monotonic() + A_MOMENT)
                return
            end = time.monotonic() + PATIENCE
            while (running := self._running()) and time.monotonic() < end:
                if not any(map(holder, running)):  # and about to say so
                    end = min(end, time.monotonic() + A_MOMENT)
                time.sleep(0.02)
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGINT, receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def settle(self) -> None:
        """Note as interrupted what is said to run and has nobody who works on it."""
        self._change(lambda content: self._settle(content["jobs"]))

    def jobs(self) -> dict[str, dict]:
        """What is known of each job; one that says that it runs, and whose process was killed more
        than a minute ago, is interrupted."""
        jobs = self.read()["jobs"]
        age = time.time() - self.file.stat().st_mtime
        if abs(age) > A_START:  # a server's clock may be ahead; this one's, set back
            self._settle(jobs)
        return jobs

    def _running(self) -> list[Path]:
        """The folders of the jobs that are said to run."""
        jobs = self.read()["jobs"].values()
        return [self._place(job) for job in jobs if job["state"] == "running"]

    def _place(self, job: dict) -> Path:
        """A job's folder, see ``places``."""
        there = (place for place in places(self.folder, job) if (place / LOCK).exists())
        return next(there, Path(job["folder"] or ""))

    def _settle(self, jobs: dict[str, dict]) -> None:
        for job in jobs.values():
            if job["state"] == "running" and not holder(self._place(job)):
                job["state"] = "interrupted"

    def _sharing(self, overrides: list[str], folder: Path) -> str | None:
        """Another job of this sweep that has this folder, too."""
        for name, job in self.read()["jobs"].items():
            if job["folder"] == str(folder) and name != " ".join(overrides):
                return name
        return None

    def work(self, overrides: list[str], folder: Path, job: Callable[[], float]) -> float:
        """Do a job and note what became of it; returns its objective, infinite if it failed.

        Whatever stops a job is the job's affair: the others go on.

        Raises:
            KeyboardInterrupt: Ctrl-C or termination, which stop the sweep.
            SystemExit: a batch system takes the job back, and runs it again.
        """
        self.set(overrides, state="running", cause=None, folder=str(folder))
        try:
            result = job()
        except (KeyboardInterrupt, SystemExit):
            self.set(overrides, state="interrupted")
            raise
        except Exception as error:
            mistake = isinstance(error, UserError)
            known = mistake or isinstance(error, RunFailed | OSError)
            cause = str(error) if known else f"{type(error).__name__}: {error}"
            if isinstance(error, Taken):
                other = self._sharing(overrides, folder)
                if other is None and holder(folder):
                    return float("inf")  # it runs, in another process
                cause = cause if other is None else _SHARED.format(folder=folder, other=other)
            self.set(overrides, state="failed", cause=cause, status=2 if mistake else 1)
            return float("inf")
        self.set(overrides, state="done", status=0)
        return result

    def summary(self) -> tuple[str, int]:
        """How many jobs are in which state, why some failed, what to do next; the exit status."""
        jobs = self.jobs()
        states = [job["state"] for job in jobs.values()]
        counts = ", ".join(f"{states.count(s)} {s}" for s in STATES if s in states)
        lines = [f"{len(jobs)} jobs in {self.folder}: {counts}"]
        failed = {name: job for name, job in jobs.items() if job["state"] == "failed"}
        common = set.intersection(*(set(name.split()) for name in jobs)) if jobs else set()
        for name, job in failed.items():
            own = " ".join(word for word in name.split() if word not in common) or name
            lines.append(f"  {printable(own)}: {printable(job['cause'])}")
        done = states.count("done")
        if done:
            lines.append(f"compare them with: fwrnn report {quoted(self.folder)}")
        left = done < len(states)
        if left:
            lines.append(f"go on with: fwrnn sweep resume {quoted(self.folder)}")
        statuses = [job.get("status", 1) for job in failed.values()]
        return "\n".join(lines), min(statuses, default=int(left))


def _is_job(job: Any) -> bool:
    """Whether it is what ``Sweep.begin`` and ``Sweep.set`` write."""
    if not isinstance(job, dict) or job.get("state") not in STATES:
        return False
    return job.get("status", 0) in (0, 1, 2) and isinstance(job.get("folder"), str | None)
