"""The text of a file, gzipped or not."""

from __future__ import annotations

import gzip
import sys
import zlib
from pathlib import Path

from hlo_graphs.errors import InputError

_GZIP = b"\x1f\x8b"


def read_text(source: str | Path) -> str:
    """The text of a plain or gzipped file, whatever it is called; `-` is the standard input.

    Raises:
      InputError: if there is no such file, or it cannot be read.
    """
    try:
        data = _bytes(str(source))
        return (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{source}: no such file") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{source}: cannot be read: damaged gzip file: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: cannot be read: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise InputError(f"{source}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{str(source)!r}: not a file name: {error}") from error


def _bytes(source: str) -> bytes:
    if source != "-":
        return Path(source).read_bytes()
    if sys.stdin is None:
        raise InputError("-: there is no standard input")
    return sys.stdin.buffer.read()
