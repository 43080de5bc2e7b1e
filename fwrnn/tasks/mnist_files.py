"""MNIST's four files: found, downloaded when missing, checked, and read.

Nothing is believed before its decompressed bytes have been compared with the known MD5, so that an
interrupted or altered download is never taken for data.
"""

import contextlib
import errno
import gzip
import hashlib
import logging
import shutil
import zlib
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import torch
from tqdm import tqdm

from fwrnn.errors import UserError
from fwrnn.files import beside
from fwrnn.interfaces import Examples
from fwrnn.tasks.cache import cache_dir

log = logging.getLogger("fwrnn")

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "http://yann.lecun.com/exdb/mnist/",
)
MD5 = {  # of the decompressed bytes
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
LARGEST = 2**26
"""Bytes that are read of a file; MNIST's largest has 47,040,016."""
_TIMEOUT = 20  # seconds that a mirror may be silent


class BrokenFile(Exception):
    """A file that is not what its name says."""


def load_mnist(data_dir: str | None = None) -> tuple[Examples, Examples]:
    """The 60,000 training and the 10,000 test examples; images (N, 28, 28) uint8.

    Files are looked for in ``data_dir``, gzipped or not, or in the user's cache. Missing ones are
    downloaded there, and broken ones too where the folder is the cache.

    Raises:
        UserError: no such folder, no network, a broken file, or no place to write.
    """
    folder = Path(data_dir).expanduser() if data_dir is not None else cache_dir("mnist")
    if data_dir is not None and not folder.is_dir():
        raise UserError(
            f"task.data_dir or --data-dir: there is no folder '{data_dir}'; give that of MNIST's "
            "files, or leave it out to have them downloaded"
        )
    arrays = {name: _obtain(folder, name, ours=data_dir is None) for name in MD5}
    parts = [torch.from_numpy(array) for array in arrays.values()]
    return Examples(parts[0], parts[1].long()), Examples(parts[2], parts[3].long())


def _obtain(folder: Path, name: str, ours: bool) -> np.ndarray:
    """One file's content; ``ours`` tells that the folder is the cache, to be mended freely."""
    for path in (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx")):
        if not path.is_file():
            continue
        try:
            return read_checked(path, name)
        except BrokenFile as error:
            if not ours:
                raise UserError(
                    f"{path} {error}; put MNIST's {name} there, or remove the file to have it "
                    "downloaded"
                ) from error
            log.warning(f"{path} {error}; downloading it again")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
    return download(folder, name)


def read_checked(path: Path, name: str) -> np.ndarray:
    """The array in an IDX file that must hold MNIST's ``name``.

    Raises:
        BrokenFile: it holds something else; the message says what.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if content[:2] == b"\x1f\x8b":
        try:
            with gzip.open(path) as file:
                content = file.read(LARGEST + 1)
        except (EOFError, OSError, zlib.error):
            raise BrokenFile("is a damaged or incomplete gzip file") from None
    if len(content) > LARGEST:
        raise BrokenFile(f"holds more than {LARGEST >> 20} MiB, which none of MNIST's files does")
    array = parse_idx(content, dimensions=3 if "images" in name else 1)
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != MD5[name]:
        raise BrokenFile(f"is an IDX file of {len(array):,} entries, but not MNIST's {name}")
    return array


def parse_idx(content: bytes, dimensions: int) -> np.ndarray:
    """An IDX file of bytes: two zeros, type 8, the number of dimensions, their sizes, the data.

    Raises:
        BrokenFile: the header or the length is wrong.
    """
    kind = "images" if dimensions == 3 else "labels"
    header = 4 + 4 * dimensions
    if not content:
        raise BrokenFile("is empty")
    if content[:4] != bytes([0, 0, 8, dimensions]):
        other = {b"\0\0\x08\x01": "labels", b"\0\0\x08\x03": "images"}.get(content[:4])
        found = f"holds {other}" if other else f"begins with {content[:4].hex()}"
        raise BrokenFile(f"{found} where an IDX file of {kind} was expected")
    if len(content) < header:
        raise BrokenFile("ends inside its header")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    if 0 in shape:  # of which numpy refuses those whose other sizes are large
        raise BrokenFile("holds nothing, as its header has it")
    wanted = header + int(np.prod(shape, dtype=object))
    if len(content) != wanted:
        raise BrokenFile(f"has {len(content):,} bytes where its header promises {wanted:,}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()


def download(folder: Path, name: str) -> np.ndarray:
    """Fetch one file into ``folder`` from the first mirror that has it, and read it.

    It gets its name only once it has been checked.

    Raises:
        UserError: no mirror had it, or it could not be written.
    """
    target = folder / f"{name}.gz"
    new = beside(folder / name)
    failures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new.touch()
        for mirror in MIRRORS:
            log.info(f"downloading {mirror}{name}.gz to {folder}")
            try:
                _fetch(f"{mirror}{name}.gz", new)
                array = read_checked(new, name)
            except BrokenFile as error:
                failures.append(f"what {mirror} sent {error}")
            except (OSError, HTTPException) as error:
                if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise
                failures.append(f"{mirror}: {getattr(error, 'reason', None) or error}")
            else:
                new.replace(target)
                return array
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror}; task.data_dir=DIR chooses another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
    raise UserError(
        f"MNIST could not be downloaded ({'; '.join(failures)}). Put {', '.join(MD5)}, gzipped or "
        f"not, into {folder}, or into a folder given by task.data_dir=DIR; task.dataset=digits "
        "needs no download"
    )


def _fetch(url: str, file: Path) -> None:
    """Fill a file with what a mirror sends, with a bar on a terminal."""
    request = Request(url, headers={"User-Agent": "torch.hub"})  # some refuse urllib's own
    with (
        urlopen(request, timeout=_TIMEOUT) as answer,
        tqdm.wrapattr(answer, "read", answer.length, disable=None) as source,
        file.open("wb") as target,
    ):
        shutil.copyfileobj(source, target)
