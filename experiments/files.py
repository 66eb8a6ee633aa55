"""Writing files so that a reader never sees half of one, and folders that one process fills."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hlo_graphs.errors import InputError

_LOCK = ".lock"


def _umask() -> int:
    """The process's file mode mask; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_device(path: Path) -> bool:
    """Whether there is a pipe, a terminal or the like, or a name for one: nothing to replace."""
    named = path.is_relative_to("/dev") and not path.is_relative_to("/dev/shm")
    return named or (path.exists() and not path.is_file())


def check_writable(path: Path) -> None:
    """Raises InputError if `path` could not be written: to know it before long work."""
    if path == Path("-"):
        raise InputError("-: standard output has the answer; name a file")
    if path.is_dir():
        raise InputError(f"{path}: is a folder, not a file to write")
    if not os.access(path if _is_device(path) else path.resolve().parent, os.W_OK):
        raise InputError(f"{path}: cannot write there: no such folder, or not allowed")


def write_atomically(path: Path, text: str) -> None:
    """Writes `text` to `path` through a temporary file beside it.

    A link stays, and what it points to is written; so are pipes and devices, directly. What was
    there leaves its permissions. What is no text, as names of files may be, is written escaped.

    Raises:
      InputError: if the folder does not exist or cannot be written.
    """
    if _is_device(path):
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        return
    path = path.resolve()
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".malloc-game-")
    except OSError as error:
        raise InputError(f"{path}: cannot write there: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
        Path(temporary).chmod(stat.S_IMODE(mode))
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Makes the folder if need be, and keeps others who ask from writing into it meanwhile.

    The system lets go of it when this process ends, however that happens.

    Raises:
      InputError: if another process holds it, or it cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Writable, as locks of files that lie on other machines ask for.
        handle = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise InputError(f"{directory}: cannot write there: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{directory}: another process is writing into it; wait for it to end, "
                "or choose another folder"
            ) from error
        yield
    finally:
        os.close(handle)
