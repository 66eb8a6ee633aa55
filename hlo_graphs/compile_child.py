"""One compiler process: `python -m hlo_graphs.compile_child REQUEST.json PIPE`.

The compiler parses its own flags once per process and ends the process where one of its checks
fails, so `hlo_graphs.compile` starts one of these for every set of flags. It ends when the other
end of the pipe, a file descriptor, is closed: when whoever started it has ended, however.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import re
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hlo_graphs.compiler_dumps import keep_dumps
from hlo_graphs.compiler_settings import CHIPS, is_hlo_file
from hlo_graphs.text_files import read_text


def main(request_path: str) -> None:
    """Does the compiles that the file asks for, one after the other, and keeps their dumps.

    They are of one target and for one chip and size of its memory.
    """
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    directory = Path(request["directory"])
    tables = directory / "tables"
    shutil.rmtree(tables, ignore_errors=True)
    tables.mkdir()
    first = request["compiles"][0]
    _set_environment(first["chip"], first["vmem_bytes"], tables)
    compile_once = _prepare(first["target"], first["chip"])
    for compile_ in request["compiles"]:
        folder = directory / compile_["setting"]["name"]
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        dumps = folder / "dumps"
        started = time.monotonic()
        compile_once({"xla_dump_to": str(dumps), **dict(compile_["setting"]["options"])})
        keep_dumps(dumps, tables, folder, round(time.monotonic() - started, 1), compile_)


def _set_environment(chip: str, vmem_bytes: int | None, tables: Path) -> None:
    flags = [f"--xla_jf_dump_to={tables}", "--xla_jf_dump_category_filter=msa"]
    if vmem_bytes is not None:
        flags.append(f"--xla_tpu_override_vmem_size_kib={vmem_bytes // 1024}")
    os.environ.update(
        JAX_PLATFORMS="cpu",
        KERAS_BACKEND="jax",
        TPU_SKIP_MDS_QUERY="1",
        TPU_ACCELERATOR_TYPE=CHIPS[chip].accelerator_type,
        TPU_WORKER_HOSTNAMES="localhost",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",
        LIBTPU_INIT_ARGS=" ".join(flags),
    )


def _prepare(target: str, chip: str) -> Callable[[dict[str, Any]], None]:
    """Lowers the target once; the result compiles it with given options."""
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(platform="tpu", topology_name=CHIPS[chip].topology)
    if is_hlo_file(target):
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
    if not callable(getattr(module, function_name, None)):
        raise SystemExit(f"{module_name} has no function {function_name}")
    function: Callable[..., Any] = getattr(module, function_name)
    return function


def _lower(factory: Callable[..., Any], devices: Sequence[Any]) -> Any:
    import jax

    function, args, *donated = _built(factory, devices)
    alone = jax.sharding.SingleDeviceSharding(devices[0])
    shape: Any = jax.ShapeDtypeStruct  # its constructor is untyped

    def placed(leaf: Any) -> Any:
        sharding = getattr(leaf, "sharding", None) or alone
        return shape(leaf.shape, leaf.dtype, sharding=sharding)

    jitted = jax.jit(function, donate_argnums=donated[0] if donated else ())
    return jitted.lower(*jax.tree.map(placed, tuple(args)))


_WANTED = (
    "a target is a function that returns (fn, args) or (fn, args, donate_argnums), with no "
    "parameter or one for the devices: fn is what gets compiled, args are jax.ShapeDtypeStruct"
)


def _built(factory: Callable[..., Any], devices: Sequence[Any]) -> tuple[Any, ...]:
    """What the target function returns; ends the process with one line if it is no target."""
    try:
        built = factory(devices) if inspect.signature(factory).parameters else factory()
    except Exception as error:
        raise SystemExit(f"{type(error).__name__}: {error} ({_WANTED})") from error
    is_target = isinstance(built, tuple) and len(built) in (2, 3) and callable(built[0])
    if not is_target:
        raise SystemExit(f"it returned {type(built).__name__} ({_WANTED})")
    return tuple(built)


def _prepare_hlo(path: str, topology: Any) -> Callable[[dict[str, Any]], None]:
    from jax._src import compiler
    from jax._src.interpreters import mlir

    jaxlib_hlo, jaxlib_jax, xla_client, ir = (
        importlib.import_module(name)
        for name in ("jaxlib._hlo", "jaxlib._jax", "jaxlib.xla_client", "jaxlib.mlir.ir")
    )
    proto = jaxlib_hlo.hlo_module_from_text(read_text(path)).as_serialized_hlo_module_proto()
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


def line_of(error: Exception) -> str:
    """What went wrong in one line: XLA's parser tells it in its second, and draws the place."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    telling = [line for line in lines if re.search(r"\berror: ", line)]
    return f"{type(error).__name__}: {(telling or lines)[0]}"


def _end_with(pipe: int) -> None:
    os.read(pipe, 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    try:
        main(sys.argv[1])
    except Exception as error:
        traceback.print_exc()
        raise SystemExit(line_of(error)) from None
