"""Compiles a JAX function or an HLO file for a TPU that is not there, and writes a bundle.

The optional `tpu` extra (libtpu) holds the production compiler; it needs no TPU. It parses its own
flags once per process and ends the process where one of its checks fails, so every compile runs
in a child process (`python -m hlo_graphs.compile REQUEST.json`), one child per flag setting.

A *target* is `module:function` (or `path/to/file.py:function`): a function that returns
`(fn, args)` or `(fn, args, donate_argnums)`, where `fn` is what gets compiled and `args` its
arguments as (trees of) `jax.ShapeDtypeStruct`: shapes only, no values. A target function with a
parameter is handed the topology's devices, for programs that shard over several; arguments
without a sharding live on the first device. Or a target is the path of an HLO text file.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hlo_graphs.bundle import Bundle, bundle_in
from hlo_graphs.bundle_writer import BundleSource, Dump, write_bundle
from hlo_graphs.errors import InputError, MissingExtraError

HUGE_VMEM_BYTES = 2**30
"""The "1 GiB" setting: nearly everything fits; twice as much ends the compiler."""

DEFAULT_TIME_LIMIT_SECONDS = 1800.0

Progress = Callable[[str], None]


class CompileError(InputError):
    """The TPU compiler rejected the program, ended its process, or ran out of time."""


@dataclass(frozen=True, slots=True)
class _CompilerChip:
    """How the compiler is asked for a chip.

    `memory_bytes` of fast memory a device has (on v4 a tensor core's half of CMEM), of which
    `scratch_bytes` are set aside for the instructions' own use; `fast_memory_space` is the n of
    `S(n)`; `can_resize` says whether the compiler accepts another size.
    """

    topology: str
    accelerator_type: str
    fast_memory_space: int
    memory_bytes: int
    scratch_bytes: int
    can_resize: bool
    clock_hz: float

    def capacity_bytes(self, vmem_bytes: int | None) -> int:
        """What the assignment has to give away."""
        return (vmem_bytes or self.memory_bytes) - self.scratch_bytes


_CHIPS = {
    "v4": _CompilerChip("v4:2x2x1", "v4-8", 3, 64 * 2**20, 0, False, 1.05e9),
    "v5e": _CompilerChip("v5e:2x2", "v5litepod-4", 1, 128 * 2**20, 16 * 2**20, True, 1.5e9),
    "v5p": _CompilerChip("v5p:2x2x1", "v5p-8", 1, 64 * 2**20, 16 * 2**20, True, 1.75e9),
    "v6e": _CompilerChip("v6e:2x2", "v6e-4", 1, 128 * 2**20, 32 * 2**20, True, 1.75e9),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One compile: its name and the compiler options that differ from production's."""

    name: str
    options: tuple[tuple[str, str], ...] = ()


PRODUCTION = Setting("production")
NO_FAST_MEMORY = Setting("no_fast_memory", (("xla_msa_enable", "false"),))
HUGE = Setting("huge")


def random_order(seed: int) -> Setting:
    """Production with a random half of the buffers considered first: another placement."""
    override = (
        f"overrides {{ hlo_position_matcher {{ hlo_random_filter {{ seed: {seed} "
        "selection_range_begin: 0 selection_range_end: 0.5 } } "
        "override_options { assign_first: true } }"
    )
    return Setting(f"random_order_{seed}", (("xla_tpu_msa_sort_order_overrides", override),))


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
      dumps_dir: keep the compiler's dumps here and reuse those of finished compiles.
      progress: called with one line per compile.

    Raises:
      MissingExtraError: libtpu or jax is not installed.
      CompileError: the compiler failed or ran out of time; nothing was written.
      InputError: unknown chip, impossible size, no such target.
    """
    compiler_chip = _checked_chip(chip)
    _check_vmem(chip, compiler_chip, vmem_bytes)
    _require_tpu_extra()
    _check_target(target)
    report = progress or _silent
    started = time.monotonic()
    with _dumps_directory(dumps_dir) as directory:
        job = _Job(target, chip, directory, started + time_limit_seconds, report)
        extras = tuple(random_order(seed) for seed in range(1, random_orders + 1))
        failures = _compile_group(job, vmem_bytes, (PRODUCTION, NO_FAST_MEMORY, *extras))
        for setting in (PRODUCTION, NO_FAST_MEMORY):
            if setting.name in failures:
                raise CompileError(f"{target} for {chip}: {failures[setting.name]}")
        failures |= _compile_huge(job, compiler_chip)
        source = BundleSource(
            name=name or default_name(target),
            chip=chip,
            vmem_bytes=vmem_bytes,
            capacity_bytes=compiler_chip.capacity_bytes(vmem_bytes),
            clock_hz=compiler_chip.clock_hz,
            fast_memory_space=compiler_chip.fast_memory_space,
            command=_command(target, chip, name, vmem_bytes),
            jax_version=importlib.metadata.version("jax"),
            libtpu_version=importlib.metadata.version("libtpu"),
            production=_dump(directory, PRODUCTION),
            no_fast_memory=_dump(directory, NO_FAST_MEMORY),
            huge=None if HUGE.name in failures else _dump(directory, HUGE),
            huge_failure=failures.get(HUGE.name),
            extra=tuple(_dump(directory, extra) for extra in extras if extra.name not in failures),
        )
        key = write_bundle(source, Path(output_dir))
    return bundle_in(Path(output_dir), key)


def default_name(target: str) -> str:
    """The name of a bundle that was given none: the function's, or the file's first part."""
    if _is_hlo_file(target):
        return Path(target).name.split(".")[0]
    return target.rpartition(":")[2]


# --- checks before anything is compiled ------------------------------------------------------


def _silent(line: str) -> None:
    del line


def _checked_chip(chip: str) -> _CompilerChip:
    if chip not in _CHIPS:
        raise InputError(f"chip {chip!r} cannot be compiled for; known are {', '.join(_CHIPS)}")
    return _CHIPS[chip]


def _check_vmem(chip: str, compiler_chip: _CompilerChip, vmem_bytes: int | None) -> None:
    if vmem_bytes is None:
        return
    if not compiler_chip.can_resize:
        raise InputError(f"the fast memory of {chip} cannot be resized; leave the size out")
    if vmem_bytes % 2**20 or not 2**24 < vmem_bytes <= HUGE_VMEM_BYTES:
        raise InputError(
            f"fast memory of {vmem_bytes} bytes: give whole MiB, more than the 16 MiB that are "
            "set aside for scratch, at most 1024 MiB"
        )


def _require_tpu_extra() -> None:
    for module in ("jax", "libtpu"):
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError("tpu", "compiling for a TPU")


def _is_hlo_file(target: str) -> bool:
    return target.endswith((".hlo", ".txt", ".hlo.gz", ".txt.gz"))


def _check_target(target: str) -> None:
    if _is_hlo_file(target):
        if not Path(target).is_file():
            raise InputError(f"{target}: no such file")
    elif not all(target.rpartition(":")[::2]):
        raise InputError(
            f"{target!r} is no target; write module:function, file.py:function or an HLO file"
        )


def _command(target: str, chip: str, name: str | None, vmem_bytes: int | None) -> str:
    shown = Path(target).name if _is_hlo_file(target) else target
    parts = ["malloc-game extract", shown, "--chip", chip]
    if name is not None:
        parts += ["--name", name]
    if vmem_bytes is not None:
        parts += ["--fast-memory", f"{vmem_bytes // 2**20}MiB"]
    return " ".join(parts)


# --- child processes -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Job:
    target: str
    chip: str
    directory: Path
    deadline: float
    report: Progress


@contextmanager
def _dumps_directory(kept: str | Path | None) -> Iterator[Path]:
    if kept is not None:
        Path(kept).mkdir(parents=True, exist_ok=True)
        yield Path(kept)
        return
    with tempfile.TemporaryDirectory(prefix="malloc-game-extract-") as directory:
        yield Path(directory)


def _compile_huge(job: _Job, compiler_chip: _CompilerChip) -> dict[str, str]:
    if not compiler_chip.can_resize:
        return {HUGE.name: f"the fast memory of {job.chip} cannot be resized"}
    return _compile_group(job, HUGE_VMEM_BYTES, (HUGE,))


def _compile_group(
    job: _Job, vmem_bytes: int | None, settings: Sequence[Setting]
) -> dict[str, str]:
    """Compiles all settings that share the compiler's flags; returns why some have no result.

    A setting that ends the child is skipped by the next child, which goes on with the others.
    """
    failures: dict[str, str] = {}
    while pending := [
        setting
        for setting in settings
        if setting.name not in failures and not _is_done(job.directory, setting)
    ]:
        job.report(f"{job.chip}: compiling {', '.join(setting.name for setting in pending)}")
        reason = _run_child(job, vmem_bytes, pending)
        for setting in pending:
            if not _is_done(job.directory, setting):
                failures[setting.name] = reason or "the compiler wrote no result"
                break
    return failures


def _run_child(job: _Job, vmem_bytes: int | None, settings: Sequence[Setting]) -> str | None:
    """Runs one child over the settings; returns why it ended early, or None."""
    left_seconds = job.deadline - time.monotonic()
    if left_seconds <= 0:
        return "the time limit was used up"
    request = {
        "target": job.target,
        "chip": job.chip,
        "vmem_bytes": vmem_bytes,
        "directory": str(job.directory),
        "settings": [asdict(setting) for setting in settings],
    }
    request_path = job.directory / "request.json"
    request_path.write_text(json.dumps(request), encoding="utf-8")
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "hlo_graphs.compile", str(request_path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(left_seconds)
        except subprocess.TimeoutExpired:
            return f"the time limit was used up after {left_seconds:.0f} s of compiling"
        finally:
            _end(child)
        log.seek(0)
        return None if code == 0 else _failure(code, log.read().decode("utf-8", "replace"))


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
    return f"the compiler {how}: {line[:400]}"


# --- dumps -----------------------------------------------------------------------------------

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


def _is_done(directory: Path, setting: Setting) -> bool:
    return (directory / setting.name / "done.json").exists()


def _dump(directory: Path, setting: Setting) -> Dump:
    """What a finished compile left behind; tables the compiler did not print are None."""
    folder = directory / setting.name
    texts: dict[str, str | None] = {}
    for part in (*_DUMP_FILES, *_TABLE_FILES):
        path = folder / f"{part}.gz"
        texts[part] = gzip.decompress(path.read_bytes()).decode() if path.exists() else None
    seconds = json.loads((folder / "done.json").read_text(encoding="utf-8"))["seconds"]
    return Dump(setting=setting.name, options=setting.options, seconds=seconds, **texts)


def _collect(dumps: Path, tables: Path, folder: Path, seconds: float) -> None:
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


# --- inside the child ------------------------------------------------------------------------


def _child_main(request_path: str) -> None:
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    directory = Path(request["directory"])
    tables = directory / "tables"
    shutil.rmtree(tables, ignore_errors=True)
    tables.mkdir()
    _set_environment(request["chip"], request["vmem_bytes"], tables)
    compile_once = _prepare(request["target"], request["chip"])
    for setting in request["settings"]:
        folder = directory / setting["name"]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        dumps = folder / "dumps"
        started = time.monotonic()
        compile_once({"xla_dump_to": str(dumps), **dict(setting["options"])})
        _collect(dumps, tables, folder, round(time.monotonic() - started, 1))


def _set_environment(chip: str, vmem_bytes: int | None, tables: Path) -> None:
    flags = [f"--xla_jf_dump_to={tables}", "--xla_jf_dump_category_filter=msa"]
    if vmem_bytes is not None:
        flags.append(f"--xla_tpu_override_vmem_size_kib={vmem_bytes // 1024}")
    os.environ.update(
        JAX_PLATFORMS="cpu",
        KERAS_BACKEND="jax",
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE=_CHIPS[chip].accelerator_type,
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        LIBTPU_INIT_ARGS=" ".join(flags),
    )


def _prepare(target: str, chip: str) -> Callable[[dict[str, Any]], None]:
    """Lowers the target once; the result compiles it with given options."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name=_CHIPS[chip].topology)
    if _is_hlo_file(target):
        return _prepare_hlo(target, topology)
    lowered = _lower(_load_function(target), topology.devices)

    def compile_once(options: dict[str, Any]) -> None:
        lowered.compile(compiler_options={**options, "xla_dump_hlo_as_text": True})

    return compile_once


def _load_function(target: str) -> Callable[..., Any]:
    module_name, _, function_name = target.rpartition(":")
    sys.path.insert(0, os.getcwd())
    if module_name.endswith(".py"):
        spec = importlib.util.spec_from_file_location("extract_target", module_name)
        if spec is None or spec.loader is None:
            raise SystemExit(f"{module_name}: cannot be imported")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(module_name)
    function: Callable[..., Any] = getattr(module, function_name)
    return function


def _lower(factory: Callable[..., Any], devices: Sequence[Any]) -> Any:
    import inspect

    import jax

    built = factory(devices) if inspect.signature(factory).parameters else factory()
    function, args, *donated = built
    alone = jax.sharding.SingleDeviceSharding(devices[0])
    shape: Any = jax.ShapeDtypeStruct  # its constructor is untyped

    def placed(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None) or alone
        return shape(leaf.shape, leaf.dtype, sharding=sharding)

    jitted = jax.jit(function, donate_argnums=donated[0] if donated else ())
    return jitted.lower(*jax.tree.map(placed, tuple(args)))


def _prepare_hlo(path: str, topology: Any) -> Callable[[dict[str, Any]], None]:
    from jax._src import compiler
    from jax._src.interpreters import mlir

    jaxlib_hlo, jaxlib_jax, xla_client, ir = (
        importlib.import_module(name)
        for name in ("jaxlib._hlo", "jaxlib._jax", "jaxlib.xla_client", "jaxlib.mlir.ir")
    )
    data = Path(path).read_bytes()
    text = (gzip.decompress(data) if path.endswith(".gz") else data).decode("utf-8")
    proto = jaxlib_hlo.hlo_module_from_text(text).as_serialized_hlo_module_proto()
    module_text = jaxlib_jax.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(proto))
    device = topology.devices[0]

    def compile_once(options: dict[str, Any]) -> None:
        with mlir.make_ir_context():
            overrides: dict[str, Any] = {**options, "xla_dump_hlo_as_text": True}
            compile_options = compiler.get_compile_options(
                num_replicas=1, num_partitions=1, env_options_overrides=overrides
            )
            module = ir.Module.parse(module_text)
            devices = xla_client.DeviceList((device,))
            device.client.compile(module, devices, compile_options)

    return compile_once


if __name__ == "__main__":
    _child_main(sys.argv[1])
