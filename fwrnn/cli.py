"""``fwrnn COMMAND …``: find the command, turn an error into one line. Does not import torch."""

import os
import signal
import sys
from importlib import import_module
from io import TextIOWrapper

from fwrnn import __version__
from fwrnn.errors import Interrupted, RunFailed, UserError, suggestion

COMMANDS = {
    "train": "train a model on a task: fwrnn train task=assoc_retrieval",
    "evaluate": "test a trained model again, or on your own data: fwrnn evaluate RUN",
    "battery": "does the layer learn wherever torch.nn.RNN does: fwrnn battery",
    "bench": "how fast the layer is on this machine, beside torch.nn's: fwrnn bench",
}

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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # of a terminal or log that has no λ: a question mark
            stream.reconfigure(errors="replace")
    try:
        return _dispatch(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        return _say(error, 2)
    except RunFailed as error:
        return _say(error, 1)
    except Interrupted as error:
        return _say(error, 128 + error.signal)
    except KeyboardInterrupt:
        return _say("interrupted", 128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output left, as `head` does; keep Python quiet at exit too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _say(error, 1)


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


def _say(message: object, status: int) -> int:
    print("fwrnn:", " ".join(str(message).split()), file=sys.stderr)
    return status
