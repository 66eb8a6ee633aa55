"""The compiler's dumps: what is kept of a compile, and reading it back for the bundle."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hlo_graphs.bundle_writer import Dump
from hlo_graphs.compiler_settings import Setting

_DUMP_FILES = {
    "before": "*.after_optimizations_before_buffer_assignment.txt",
    "production": "*.after_codegen.txt",
    "buffer_assignment": "*-buffer-assignment.txt",
    "live_range": "*-live-range.txt",
}
_TABLE_FILES = {
    "bufferinfo": "*-memory-space-assignment-bufferinfo.txt",
    "allocinfo": "*-memory-space-assignment-allocinfo.txt",
    "scheduleinfo": "*-memory-space-assignment-scheduleinfo.txt",
}


@dataclass(frozen=True, slots=True)
class Compile:
    """One compile: of what, for what, by what. Kept dumps stand for an equal compile only.

    `source_sha256` is that of the target's own file, not of what a Python file imports;
    `vmem_bytes` is the fast memory that is asked for, None for the chip's own.
    """

    target: str
    source_sha256: str
    chip: str
    vmem_bytes: int | None
    setting: Setting
    jax_version: str
    libtpu_version: str

    def to_document(self) -> dict[str, Any]:
        """The compile as JSON gives it back."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return document


def is_done(directory: Path, compile_: Compile) -> bool:
    """Whether this compile, and no other under its setting's name, was finished and kept."""
    try:
        text = (directory / compile_.setting.name / "done.json").read_text(encoding="utf-8")
        done = json.loads(text)
    except (OSError, ValueError):
        return False
    return isinstance(done, dict) and done.get("compile") == compile_.to_document()


def read_dump(directory: Path, setting: Setting) -> Dump:
    """What a finished compile left behind; tables the compiler did not print are None."""
    folder = directory / setting.name
    texts: dict[str, str | None] = {}
    for part in (*_DUMP_FILES, *_TABLE_FILES):
        path = folder / f"{part}.gz"
        texts[part] = gzip.decompress(path.read_bytes()).decode() if path.exists() else None
    seconds = json.loads((folder / "done.json").read_text(encoding="utf-8"))["seconds"]
    return Dump(setting=setting.name, options=setting.options, seconds=seconds, **texts)


def keep_dumps(
    dumps: Path, tables: Path, folder: Path, seconds: float, compile_: Mapping[str, Any]
) -> None:
    """Keeps the wanted files of one compile, compressed; `done.json` is written last.

    `compile_` is what `Compile.to_document` gave.
    """
    for patterns, source in ((_DUMP_FILES, dumps), (_TABLE_FILES, tables)):
        for part, pattern in patterns.items():
            found = sorted(source.glob(pattern), key=lambda path: path.stat().st_size)
            if found:  # the largest module, should there be helper modules
                data = gzip.compress(found[-1].read_bytes(), mtime=0)
                (folder / f"{part}.gz").write_bytes(data)
    shutil.rmtree(dumps)
    for path in tables.iterdir():
        path.unlink()
    done = {"seconds": seconds, "compile": compile_}
    (folder / "done.json").write_text(json.dumps(done), encoding="utf-8")
