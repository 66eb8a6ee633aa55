"""The compiler's dumps: what is kept of a compile, and reading it back for the bundle."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

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


def is_done(directory: Path, setting: Setting) -> bool:
    """Whether a compile was finished and its dumps kept."""
    return (directory / setting.name / "done.json").exists()


def read_dump(directory: Path, setting: Setting) -> Dump:
    """What a finished compile left behind; tables the compiler did not print are None."""
    folder = directory / setting.name
    texts: dict[str, str | None] = {}
    for part in (*_DUMP_FILES, *_TABLE_FILES):
        path = folder / f"{part}.gz"
        texts[part] = gzip.decompress(path.read_bytes()).decode() if path.exists() else None
    seconds = json.loads((folder / "done.json").read_text(encoding="utf-8"))["seconds"]
    return Dump(setting=setting.name, options=setting.options, seconds=seconds, **texts)


def keep_dumps(dumps: Path, tables: Path, folder: Path, seconds: float) -> None:
    """Keeps the wanted files of one compile, compressed; `done.json` is written last."""
    for patterns, source in ((_DUMP_FILES, dumps), (_TABLE_FILES, tables)):
        for part, pattern in patterns.items():
            found = sorted(source.glob(pattern), key=lambda path: path.stat().st_size)
            if found:  # the largest module, should there be helper modules
                data = gzip.compress(found[-1].read_bytes(), mtime=0)
                (folder / f"{part}.gz").write_bytes(data)
    shutil.rmtree(dumps)
    for path in tables.iterdir():
        path.unlink()
    (folder / "done.json").write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
