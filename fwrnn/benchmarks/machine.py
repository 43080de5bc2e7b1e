"""The machine a measurement was taken on, what memory it has left, and what a call needs of it."""

import ctypes
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from fwrnn import __version__
from fwrnn.machine import cores, processor

_SELF = Path("/proc/self")


class Peak(NamedTuple):
    """Bytes of memory: the most a call held beyond what was held before it, and the process's
    resident memory at that moment (None on a GPU)."""

    added: int
    resident: int | None


def describe(device: torch.device) -> dict:
    """The machine in a flat dictionary; what cannot be found out is None."""
    return {
        "cpu": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": _version("numba"),
        "triton": _version("triton"),
        "fwrnn": __version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def free_memory(device: torch.device) -> int | None:
    """Bytes that can be had without hurting anyone; None where that cannot be found out."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable")


def measure_peak(run: Callable[[], object], device: torch.device) -> Peak | None:
    """What ``run`` needs at its peak, or None where that cannot be measured.

    On CUDA the allocator knows. On Linux the kernel keeps a high-water mark of the resident memory,
    which can be reset; free memory goes back to it first, or ``run`` would find that and use it.
    Elsewhere ``run`` is not called.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return Peak(torch.cuda.max_memory_allocated(device) - before, None)
    if device.type != "cpu" or not _reset_high_water_mark():
        return None
    before = _kilobytes(_SELF / "status", "VmRSS")
    run()
    highest = _kilobytes(_SELF / "status", "VmHWM")
    assert before is not None and highest is not None  # the mark was there when it was reset
    return Peak(max(0, highest - before), highest)


def _reset_high_water_mark() -> bool:
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_SELF / "clear_refs").write_text("5", encoding="ascii")
    except (AttributeError, OSError, TypeError):  # not Linux, another libc, or a sandbox
        return False
    return _kilobytes(_SELF / "status", "VmHWM") is not None


def _kilobytes(file: Path, field: str) -> int | None:
    """The field of a file of /proc such as "VmRSS:  1234 kB", in bytes."""
    try:
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{field}:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return None
