"""Stopping at a good moment: Ctrl-C and termination become a request that the loop looks at."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from typing import Any

from fwrnn.errors import Interrupted

_STOP = (signal.SIGINT, signal.SIGTERM)
_USERS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
STOPPING = (*_STOP, *_USERS)
"""All signals that may ask a run to stop; they reach every process of a terminal or batch job."""


class Stopped(KeyboardInterrupt):
    """Work within ``StopRequest.at_once`` was given up, as a signal asked for it."""


class StopRequest:
    """While open, the first signal that asks to stop only sets ``requested``; a second interrupts,
    and what comes after it does not disturb who puts things in order then.

    Those are SIGINT and SIGTERM, and what a batch system sends before a job's time is over, where
    somebody handles that: submitit, which has the job run again. Its handler is called once the run
    has stopped by ``Interrupted``, its state saved.

    ``signal`` is the number of the signal that came, or None.
    """

    def __init__(self):
        self.signal: int | None = None
        self._at_once = self._interrupted = False
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For long work that writes nothing and can be done anew: nobody waits for its end.

        Raises:
            Stopped: the first signal came, now or before.
        """
        self._at_once = True
        try:
            if self.requested:
                raise Stopped
            yield
        finally:
            self._at_once = False

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread only; elsewhere there is nothing to set up.
        if threading.current_thread() is threading.main_thread():
            handled = [number for number in _USERS if callable(signal.getsignal(number))]
            self._before = {s: signal.signal(s, self._receive) for s in (*_STOP, *handled)}
        return self

    def __exit__(self, kind, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        came = self.signal
        handler = None if came is None else self._before.get(came)
        if came in _USERS and kind is Interrupted and callable(handler):
            # Taking a job back, SLURM terminates all of its processes: the one that asks it, too.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            handler(came, None)

    def _receive(self, number, frame) -> None:
        if self._interrupted:
            return
        if self.requested:
            self._interrupted = True
            raise KeyboardInterrupt
        self.signal = number
        if self._at_once:
            raise Stopped


def leave_to_parent() -> None:
    """For a worker: Ctrl-C is for the process that started it alone, which ends its workers; and
    it ends with that one, however that ends, whatever it is waiting for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None  # as this is a worker
    parent.join()
    os._exit(0)
