"""Writing files so that none is ever half-written."""

import errno
import json
import os
import secrets
import shlex
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from fwrnn.errors import RunFailed, UserError

WINDOWS = os.name == "nt"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_whole(path: Path, content, keep: Path | None = None) -> None:
    """Write beside the file, then replace it: a kill or a full disk leaves the old one.

    What was at ``path`` stays as ``keep``, if that is given.

    Raises:
        RunFailed: it could not be written.
    """
    new, other = beside(path), beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(new, "wb") as file:  # noqa: PTH123  (a test dies in each of these calls)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            _name_too(path, other)
            _replace(other, keep)  # which does nothing where both are one file, as after a kill
        _replace(new, path)
        _sync_folder(path.parent)
    except OSError as error:
        remedy = "; free some space, then go on" if error.errno in _FULL else ""
        raise RunFailed(
            f"could not write {path}: {error.strerror}; what was there before is intact{remedy}"
        ) from error
    finally:  # a second Ctrl-C comes here too
        for remains in (new, other):
            with suppress(OSError):  # not there, or its folder is none
                remains.unlink()


def _replace(new: Path, path: Path) -> None:
    """``new`` in the place of ``path``, as soon as nobody has that open, where this matters."""
    for patience in range(20, -1, -1):
        try:
            os.replace(new, path)  # noqa: PTH105
            break
        except PermissionError:
            if not (WINDOWS and patience):
                raise
            time.sleep(0.1)


def check_folder(folder: Path, instead: str) -> None:
    """Make a folder if it is not there, and see that files can be written in it.

    Raises:
        UserError: they cannot; ``instead`` is what to do about it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise unwritable(folder, error, instead) from error


def unwritable(folder: str | Path, error: OSError, instead: str) -> UserError:
    """What to tell of a folder that cannot be written; ``instead`` is what to do about it, other
    than to free some space where that is what lacks."""
    remedy = "free some space" if error.errno in _FULL else instead
    return UserError(f"cannot write to '{folder}': {error.strerror or error}; {remedy}")


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON, in which what is not a finite number is null: NaN is none."""
    finite = json.loads(json.dumps(value), parse_constant=lambda constant: None)
    return json.dumps(finite, indent=indent, allow_nan=False)


def quoted(path: str | Path) -> str:
    """A path as a shell takes it."""
    return subprocess.list2cmdline([str(path)]) if WINDOWS else shlex.quote(str(path))


def from_here(path: str | Path, start: str | Path = ".") -> Path:
    """A path as it is shown: from the folder that commands are given in, if there is a way."""
    try:
        return Path(os.path.relpath(path, start))
    except ValueError:  # on another drive
        return Path(path)


def beside(path: Path) -> Path:
    """A name that no other writer has: in containers that share a folder all are process 1."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _name_too(path: Path, other: Path) -> None:
    """A second name for a file, or a copy where the file system has no such names."""
    try:
        os.link(path, other)  # noqa: PTH136
    except OSError:
        shutil.copyfile(path, other)


def _sync_folder(folder: Path) -> None:
    """Have the new names in a folder outlast a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # some network file systems do not
        os.fsync(handle)
    os.close(handle)
