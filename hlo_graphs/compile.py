"""Compiles a JAX function or an HLO file for a TPU that is not there, and writes a bundle.

The optional `tpu` extra (libtpu) holds the production compiler; it needs no TPU. Every compile
runs in a child process (`hlo_graphs.compile_child`), one child per set of the compiler's flags.

A *target* is `module:function` (or `path/to/file.py:function`): a function that returns
`(fn, args)` or `(fn, args, donate_argnums)`, where `fn` is what gets compiled and `args` its
arguments as (trees of) `jax.ShapeDtypeStruct`: shapes only, no values. A target function with a
parameter is handed the topology's devices, for programs that shard over several; arguments
without a sharding live on the first device. Or a target is the path of an HLO text file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path

from hlo_graphs.bundle import Bundle, bundle_in
from hlo_graphs.bundle_writer import BundleSource, write_bundle
from hlo_graphs.compiler_dumps import Compile, is_done, read_dump
from hlo_graphs.compiler_settings import (
    CHIPS,
    HUGE,
    HUGE_VMEM_BYTES,
    NO_FAST_MEMORY,
    PRODUCTION,
    Setting,
    checked_chip,
    is_hlo_file,
    random_order,
)
from hlo_graphs.errors import InputError, MissingExtraError

DEFAULT_TIME_LIMIT_SECONDS = 1800.0

_REQUIRED = (PRODUCTION, NO_FAST_MEMORY)
"""Settings without which there is no bundle."""

Progress = Callable[[str], None]


class CompileError(InputError):
    """The TPU compiler rejected the program, ended its process, or ran out of time."""


@dataclass(frozen=True, slots=True)
class _Job:
    """What is compiled for what, where its dumps go, and until when (`time.monotonic`)."""

    target: str
    source_sha256: str
    chip: str
    vmem_bytes: int | None
    directory: Path
    deadline: float
    report: Progress


def extract(
    target: str,
    chip: str,
    output_dir: str | Path,
    *,
    name: str | None = None,
    vmem_bytes: int | None = None,
    time_limit_seconds: float = DEFAULT_TIME_LIMIT_SECONDS,
    random_orders: int = 2,
    dumps_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Bundle:
    """Compiles `target` for `chip` and writes its bundle into `output_dir`.

    Args:
      target: `module:function`, `file.py:function`, or the path of an HLO text file.
      chip: one of v4, v5e, v5p, v6e.
      output_dir: made if absent; files of the same bundle are replaced.
      name: what the bundle is called; by default the function's or the file's name.
      vmem_bytes: another size of the chip's fast memory (a multiple of 1 MiB), instructions'
        scratch included; the bundle's name then carries it (`.64MiB`).
      time_limit_seconds: for all compiles together. The bundle needs two of them; what the rest
        would have added is then missing, with the reason.
      random_orders: how many further placements to compile, as points for cost models.
      dumps_dir: keep the compiler's dumps here, and reuse those of the same compile: of an equal
        target file, for the same chip and memory, by the same compiler.
      progress: called with one line per compile.

    Raises:
      MissingExtraError: libtpu or jax is not installed.
      CompileError: the compiler failed or ran out of time; nothing was written.
      InputError: unknown chip, impossible size, name or time limit, no such target, a folder that
        cannot be written.
    """
    if not 0 <= time_limit_seconds < math.inf:
        raise InputError(f"time limit is {time_limit_seconds} seconds, must be >= 0 and finite")
    checked_chip(chip, vmem_bytes)
    _check_output(name or default_name(target), Path(output_dir))
    _require_tpu_extra()
    _check_target(target)
    source_sha256 = _source_sha256(target)
    deadline = time.monotonic() + time_limit_seconds
    extras = tuple(random_order(seed) for seed in range(1, random_orders + 1))
    with _dumps_directory(dumps_dir) as directory:
        job = _Job(
            target, source_sha256, chip, vmem_bytes, directory, deadline, progress or _silent
        )
        failures = _compile_all(job, extras)
        source = _source(job, name, extras, failures)
        key = write_bundle(source, Path(output_dir))
    return bundle_in(Path(output_dir), key)


def default_name(target: str) -> str:
    """The name of a bundle that was given none: the function's, or the file's first part."""
    if is_hlo_file(target):
        return Path(target).name.split(".")[0]
    return target.rpartition(":")[2]


# --- checks before anything is compiled ------------------------------------------------------


def _silent(line: str) -> None:
    del line


def _check_output(name: str, output_dir: Path) -> None:
    if Path(name).name != name:
        raise InputError(f"{name!r} is a path, not a name of a bundle: its folder is the output's")
    above = next(path for path in (output_dir, *output_dir.parents) if path.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise InputError(f"{output_dir}: cannot write there: no folder, or not allowed")


def _require_tpu_extra() -> None:
    for module in ("jax", "libtpu"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError("tpu", "compiling for a TPU")


def _check_target(target: str) -> None:
    if is_hlo_file(target):
        if not Path(target).is_file():
            raise InputError(f"{target}: no such file")
        return
    module, _, function = target.rpartition(":")
    if not (module and function):
        raise InputError(
            f"{target!r} is no target; write module:function, file.py:function or an HLO file"
        )
    if module.endswith(".py") and not Path(module).is_file():
        raise InputError(f"{module}: no such file")


def _source_sha256(target: str) -> str:
    """Digest of the target's file; of nothing if there is none, which the child will say."""
    module = target if is_hlo_file(target) else target.rpartition(":")[0]
    path = module if is_hlo_file(target) or module.endswith(".py") else _module_file(module)
    try:
        data = b"" if path is None else Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    return hashlib.sha256(data).hexdigest()


def _module_file(module: str) -> str | None:
    """The file of a module, found as the child will find it but without importing anything."""
    folders: Sequence[str] = [os.getcwd(), *sys.path]
    name, file = "", None
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        spec = PathFinder.find_spec(name, folders)
        if spec is None:
            return None
        folders, file = spec.submodule_search_locations or (), spec.origin
    return file


# --- child processes -------------------------------------------------------------------------


@contextmanager
def _dumps_directory(kept: str | Path | None) -> Iterator[Path]:
    if kept is not None:
        Path(kept).mkdir(parents=True, exist_ok=True)
        yield Path(kept)
        return
    with tempfile.TemporaryDirectory(prefix="malloc-game-extract-") as directory:
        yield Path(directory)


def _compile_all(job: _Job, extras: Sequence[Setting]) -> dict[str, str]:
    """Compiles every setting; returns why some have no result. Raises where the bundle needs it."""
    failures = _compile_group(job, job.vmem_bytes, (*_REQUIRED, *extras))
    if not CHIPS[job.chip].can_resize:
        return failures | {HUGE.name: f"the fast memory of {job.chip} cannot be resized"}
    return failures | _compile_group(job, HUGE_VMEM_BYTES, (HUGE,))


def _compile_group(
    job: _Job, vmem_bytes: int | None, settings: Sequence[Setting]
) -> dict[str, str]:
    """Compiles all settings that share the compiler's flags; returns why some have no result.

    A setting that ends the child is skipped by the next child, which goes on with the others,
    unless the bundle needs it: then nothing more is compiled.
    """
    failures: dict[str, str] = {}
    compiles = [_compile_of(job, vmem_bytes, setting) for setting in settings]
    while pending := [
        compile_
        for compile_ in compiles
        if compile_.setting.name not in failures and not is_done(job.directory, compile_)
    ]:
        names = [compile_.setting.name for compile_ in pending]
        job.report(f"{job.chip}: compiling {', '.join(names)}")
        reason = _run_child(job, pending)
        for compile_, name in zip(pending, names, strict=True):
            if not is_done(job.directory, compile_):
                failures[name] = reason or "the compiler wrote no result"
                if compile_.setting in _REQUIRED:
                    raise CompileError(f"{job.target} for {job.chip}: {failures[name]}")
                break
    return failures


def _compile_of(job: _Job, vmem_bytes: int | None, setting: Setting) -> Compile:
    return Compile(
        target=job.target,
        source_sha256=job.source_sha256,
        chip=job.chip,
        vmem_bytes=vmem_bytes,
        setting=setting,
        jax_version=importlib.metadata.version("jax"),
        libtpu_version=importlib.metadata.version("libtpu"),
    )


def _run_child(job: _Job, compiles: Sequence[Compile]) -> str | None:
    """Runs one child over the compiles; returns why it ended early, or None."""
    left_seconds = job.deadline - time.monotonic()
    if left_seconds <= 0:
        return "the time limit was used up"
    request = {
        "directory": str(job.directory),
        "compiles": [compile_.to_document() for compile_ in compiles],
    }
    request_path = job.directory / "request.json"
    request_path.write_text(json.dumps(request), encoding="utf-8")
    with tempfile.TemporaryFile() as log, _pipe() as held:
        child = subprocess.Popen(
            [sys.executable, "-m", "hlo_graphs.compile_child", str(request_path), str(held)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(held,),
        )
        try:
            code = child.wait(left_seconds)
        except subprocess.TimeoutExpired:
            return f"the time limit was used up after {left_seconds:.0f} s of compiling"
        finally:
            _end(child)
        log.seek(0)
        return None if code == 0 else _failure(code, log.read().decode("utf-8", "replace"))


@contextmanager
def _pipe() -> Iterator[int]:
    """The reading end of a pipe whose other end is closed when this process ends, if not before."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _failure(code: int, log: str) -> str:
    """The one line of a child's output that says what went wrong."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"F\d{4} ", line)]  # a failed check
    line = (telling or lines or ["no output"])[0 if telling else -1]
    how = f"ended by signal {-code}" if code < 0 else f"failed with exit code {code}"
    return f"the compiler's process {how}: {line[:400]}"


# --- the bundle --------------------------------------------------------------------------------


def _source(
    job: _Job, name: str | None, extras: Sequence[Setting], failures: Mapping[str, str]
) -> BundleSource:
    """What the finished compiles left, as the bundle's writer wants it."""
    chip = CHIPS[job.chip]
    return BundleSource(
        name=name or default_name(job.target),
        chip=job.chip,
        vmem_bytes=job.vmem_bytes,
        capacity_bytes=chip.capacity_bytes(job.vmem_bytes),
        clock_hz=chip.clock_hz,
        fast_memory_space=chip.fast_memory_space,
        command=_command(job, name),
        jax_version=importlib.metadata.version("jax"),
        libtpu_version=importlib.metadata.version("libtpu"),
        production=read_dump(job.directory, PRODUCTION),
        no_fast_memory=read_dump(job.directory, NO_FAST_MEMORY),
        huge=None if HUGE.name in failures else read_dump(job.directory, HUGE),
        huge_failure=failures.get(HUGE.name),
        extra=tuple(
            read_dump(job.directory, extra) for extra in extras if extra.name not in failures
        ),
    )


def _command(job: _Job, name: str | None) -> str:
    """What a user would type for the same bundle, without folders of this machine."""
    shown = Path(job.target).name if is_hlo_file(job.target) else job.target
    parts = ["malloc-game extract", shown, "--chip", job.chip]
    if name is not None:
        parts += ["--name", name]
    if job.vmem_bytes is not None:
        parts += ["--fast-memory", f"{job.vmem_bytes // 2**20}MiB"]
    return " ".join(parts)
