"""Stopping at a good moment: Ctrl-C and termination become a request that the loop looks at."""

import signal
import threading


class StopRequest:
    """While open, the first SIGINT or SIGTERM only sets ``requested``; a second one interrupts.

    ``signal`` is the number of the signal that came, or None.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.signal: int | None = None
        self._before = {}

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread only; elsewhere there is nothing to set up.
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._receive) for s in self._SIGNALS}
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, frame) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.signal = number
