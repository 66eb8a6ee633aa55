"""The folder of an evaluation: what its table was made with, and what may be added to it.

`settings.json` says how the maps of the table are timed and on which machine, once for all rows,
and lists the runs that filled it. A table may be extended by other programs, solvers, seeds, time
limits and processes per solver. What would make its rows mean different things is refused: other
times, another machine or other packages, and a solver of which the table has rows already made by
other code. Another processor is taken on demand: then each row tells its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from experiments.files import write_atomically
from experiments.results import RESULTS, TABLE, Row, TimeModel, has_rows
from hlo_graphs.errors import InputError

SETTINGS = "settings.json"
MAPS = "maps"

_OF_A_PROCESSOR = frozenset({"processor", "cores"})
"""What of a machine may differ within a table, on demand."""


@dataclass(frozen=True, slots=True)
class Run:
    """One `evaluate` command that filled a table.

    Attributes:
      programs: names.
      solvers: names.
      seeds: each solver ran once per seed.
      time_limit_seconds: per task.
      workers_per_task: processes each solver could use.
      parallel: tasks at a time.
      command: as it was typed.
    """

    programs: tuple[str, ...]
    solvers: tuple[str, ...]
    seeds: tuple[int, ...]
    time_limit_seconds: float
    workers_per_task: int
    parallel: int
    command: str


@dataclass(frozen=True, slots=True)
class TableSettings:
    """What `settings.json` says: `model` and `machine` hold for all rows, `runs` made them.

    Of `machine` the processor and the number of cores are those of the first run; other runs may
    have been allowed others.
    """

    model: TimeModel
    machine: dict[str, Any]
    runs: tuple[Run, ...]


def map_path(directory: Path, row: Row) -> Path:
    """Where the map of a row lies."""
    limit = f"{row.time_limit_seconds:g}s"
    name = f"{row.program}.{row.solver}.{limit}.{row.workers_per_task}.{row.seed}.json"
    return directory / MAPS / name


def read_settings(directory: Path) -> TableSettings:
    """What a folder's table was made with.

    Raises:
      InputError: if there is no `settings.json`, or it is damaged or of another version.
    """
    path = directory / SETTINGS
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        runs = [
            Run(**{name: _tuple(value) for name, value in run.items()}) for run in document["runs"]
        ]
        return TableSettings(TimeModel(**document["model"]), document["machine"], tuple(runs))
    except FileNotFoundError as error:
        raise InputError(f"{path}: not there; `malloc-game evaluate` writes it") from error
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{path}: damaged, or of another version ({type(error).__name__}: {error}); "
            "evaluate into another folder"
        ) from error


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def open_table(directory: Path, model: TimeModel, run: Run, *, any_processor: bool = False) -> None:
    """Makes the folder, or notes that another run adds to it; call `refuse_mixing` before.

    With `any_processor` the table may have been begun on another processor.

    Raises:
      InputError: if the folder's table was made with other times or elsewhere, or only its CSV
        was kept.
    """
    here = machine()
    if (directory / TABLE).exists() and not has_rows(directory):
        raise InputError(
            f"{directory}: only {TABLE} was kept there, and rows are added to {RESULTS}; choose "
            "another folder"
        )
    if (directory / SETTINGS).exists() or has_rows(directory):
        known = read_settings(directory)
        _check_model(directory, known.model, model)
        may_differ = _OF_A_PROCESSOR if any_processor else frozenset[str]()
        _check_machine(directory, known.machine, here, may_differ)
        here |= {name: known.machine[name] for name in may_differ & known.machine.keys()}
        here = _with_known_versions(here, known.machine)
        runs = known.runs if run in known.runs else (*known.runs, run)
    else:
        runs = (run,)
    (directory / MAPS).mkdir(parents=True, exist_ok=True)
    document = {"model": asdict(model), "machine": here, "runs": [asdict(run) for run in runs]}
    write_atomically(directory / SETTINGS, json.dumps(document, indent=2) + "\n")
    (directory / RESULTS).touch()


def _check_model(directory: Path, known: TimeModel, model: TimeModel) -> None:
    if known != model:
        raise InputError(
            f"{directory}: its table is timed as {known.label}, not as {model.label}; "
            "choose another folder"
        )


def _check_machine(
    directory: Path, known: dict[str, Any], here: dict[str, Any], may_differ: frozenset[str]
) -> None:
    there, here = _flat(known), _flat(here)
    differing = {
        name: f"{name} {there[name]!r} there, {here[name]!r} here"
        for name in sorted((there.keys() & here.keys()) - may_differ)
        if there[name] != here[name]
    }
    if differing:
        way_out = "choose another folder"
        if differing.keys() <= _OF_A_PROCESSOR:
            way_out += ", or allow it with --any-processor"
        raise InputError(
            f"{directory}: its rows were made elsewhere ({'; '.join(differing.values())}): solvers "
            f"with a time limit would not compare; {way_out}"
        )


def _with_known_versions(here: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """This machine, with the versions of packages that only earlier runs had."""
    packages = dict(here["packages"])
    for name, version in known.get("packages", {}).items():
        if packages.get(name) is None:
            packages[name] = version
    return {**here, "packages": packages}


def _flat(machine: dict[str, Any]) -> dict[str, Any]:
    """With the packages' versions beside the rest; without those that are not known."""
    packages: dict[str, Any] = machine.get("packages", {})
    rest = {name: value for name, value in machine.items() if name != "packages"}
    return rest | {name: version for name, version in packages.items() if version is not None}


def refuse_mixing(directory: Path, rows: Iterable[Row], solvers: Iterable[str]) -> None:
    """Raises InputError if one of these solvers has rows in the table that other code made."""
    again, here = set(solvers), code_digest()
    for row in rows:
        if row.solver in again and row.code != here:
            raise InputError(
                f"{directory}: {row.solver}'s rows there were made by other code ({row.code}, now "
                f"{here}): choose another folder, or leave {row.solver} out"
            )


def machine() -> dict[str, Any]:
    """What rows are made on: versions, processor, cores."""
    learning = ("flax", "jax", "jaxlib", "mctx", "optax")
    packages = ("malloc-game", "numba", "numpy", "ortools", "scipy", *learning)
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "packages": {name: _version(name) for name in packages},
    }


@cache
def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def code_digest() -> str:
    """Of what decides a row: sources of lowering, rules, solvers and agents, and the weights.

    12 hex digits.
    """
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for package in ("agents", "hlo_graphs", "malloc_game", "solvers"):
        for path in sorted([*(root / package).glob("*.py"), *(root / package).glob("*.msgpack")]):
            digest.update(f"{package}/{path.name}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
