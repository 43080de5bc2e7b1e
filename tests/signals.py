"""Ctrl-C and its like, as this process gets them."""

import os
import signal


def press(number: int = signal.SIGINT) -> None:
    if os.name == "nt":  # where os.kill would end this process
        signal.raise_signal(number)
    else:
        os.kill(os.getpid(), number)
