"""``fwrnn COMMAND …``: find the command, turn an error into one line. Does not import torch."""

import atexit
import gc
import os
import signal
import sys
import threading
import time
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

from fwrnn import __version__
from fwrnn.commands import COMMANDS
from fwrnn.errors import Interrupted, RunFailed, UserError, is_full, printable, suggestion

HELP = """\
fwrnn: run, check and build on "Using Fast Weights to Attend to the Recent Past".

usage: fwrnn COMMAND …

{commands}

  fwrnn COMMAND --help    what a command takes
  fwrnn --version         the version

A first run, about a minute on a laptop, and a look at it:
  fwrnn train task=assoc_retrieval
  tensorboard --logdir outputs"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit status.

    0 done, 1 failed, 2 a mistake in what was asked for, 130 Ctrl-C, 143 terminated.
    """
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # of a terminal or log that has no λ: a question mark
            stream.reconfigure(errors="replace")
    alone = argv is None
    if argv is None:  # this process is for the command alone
        _collect_less_garbage()
        argv = sys.argv[1:]
        if argv[:1] not in (["train"], ["sweep"]):  # which have their own way
            signal.signal(signal.SIGTERM, _terminate)
        if argv[:1] in (["train"], ["evaluate"]) and is_shared(Path("/proc/loadavg")):
            # Read when PyTorch is imported: its threads sleep while they wait for one another.
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        return _dispatch(argv)
    except UserError as error:
        return _say(error, 2, error.shown)
    except RunFailed as error:
        return _say(error, 1)
    except KeyboardInterrupt as error:
        if alone:  # all is in order: another signal need not wait for the rest, nor be told of
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        saved = isinstance(error, Interrupted)
        status = 128 + (error.signal if saved else signal.SIGINT)
        _say(error if saved else "interrupted", status)
        if alone and any(thread.name == "fwrnn compiler" for thread in threading.enumerate()):
            sys.stdout.flush()
            os._exit(status)  # at an orderly end LLVM falls over what is left of its threads
        return status
    except BrokenPipeError:
        # The reader of our output left, as `head` does; keep Python quiet at exit too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RuntimeError as error:
        if not is_full(error):
            raise
        reason = str(error).strip().partition("\n")[0].partition(". ")[0]
        return _say(
            f"the GPU is full ({reason}); smaller batches need less, device=cpu needs none, and "
            "fwrnn train resume=RUN goes on from what was saved", 1,
        )  # fmt: skip
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", 1)


def _open_what_is_closed() -> None:
    """Python has None for a standard stream that was closed before it started."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115


def _terminate(number, frame) -> None:
    """As Ctrl-C does: whoever works ends the processes that work for it."""
    signal.signal(number, signal.SIG_IGN)
    raise Interrupted("terminated", number)


def _collect_less_garbage() -> None:
    """Have Python look for cycles among its objects less often, and not at all at its end.

    It spends a third of the time of all imports on them, which make a million objects that stay,
    and half a second at the end, when the system takes all of the memory back anyway.
    """
    gc.set_threshold(20_000)
    atexit.register(_keep_garbage)


def _keep_garbage() -> None:
    if "triton" not in sys.modules:  # which would complain of what is left
        gc.freeze()


def is_shared(loadavg: Path) -> bool:
    """Whether others use processors here: ``loadavg`` tells "… RUNNING/THREADS …", us included.

    PyTorch's threads, one per processor, spin while they wait for one another. Where a processor is
    taken that made training a hundred times slower; where none is, sleeping would make it slower.
    """
    running = []
    for _ in range(3):  # who runs for a moment only does no harm
        try:
            running.append(int(loadavg.read_text("ascii").split()[3].partition("/")[0]))
        except (OSError, ValueError, IndexError):  # not Linux
            return False
        time.sleep(0.003)
    return min(running) > 1


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        lines = (f"  {name:<10} {text}" for name, text in COMMANDS.items())
        print(HELP.format(commands="\n".join(lines)))
        return 0
    command, *rest = argv
    if command in ("-V", "--version"):
        print(f"fwrnn {__version__}")
        return 0
    if command not in COMMANDS:
        raise UserError(
            f"unknown command '{command}'{suggestion(command, COMMANDS)} "
            f"Commands: {', '.join(COMMANDS)}"
        )
    return import_module(f"fwrnn.commands.{command}").main(rest)


def _say(message: object, status: int, shown: str = "") -> int:
    line = " ".join(str(message).split())
    print("fwrnn:", printable(line), file=sys.stderr)
    if shown:
        print(shown, file=sys.stderr)
    return status
