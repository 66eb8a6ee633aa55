"""One self-contained offline page, and its Markdown twin, from an evaluation's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from experiments.files import check_writable, write_atomically
from experiments.folder import map_path
from experiments.inputs import load_map, load_program
from experiments.parallel import Say, on_all_processors
from experiments.report.contents import Report, counted, report_of
from experiments.report.markdown import markdown
from experiments.report.picture import PicturedMap, map_document, program_document
from experiments.report.statistics import ProgramResult
from experiments.results import TimeModel
from experiments.solve import SolveResult
from hlo_graphs.errors import InputError
from hlo_graphs.program import Program

PAGE = "report.html"
MARKDOWN = "report.md"


def write_report(
    directory: Path, other: Path | None = None, *, pictures: bool = True, say: Say | None = None
) -> Path:
    """Writes `report.html` and `report.md` into an evaluation's folder; returns the page.

    Args:
      directory: of the evaluation.
      other: another evaluation to compare with; what got slower since is named.
      pictures: draw the maps too.
      say: told how far it is.

    Raises:
      InputError: if a folder holds no evaluation, or cannot be written.
    """
    if not directory.is_dir():
        raise InputError(f"{directory}: no such folder")
    for name in (PAGE, MARKDOWN):
        check_writable(directory / name)
    found = report_of(directory, other, say)
    drawn = _pictures(directory, found, say) if pictures else []
    page = (
        _environment()
        .get_template("report.html")
        .render(report=found, counted=counted, has_pictures=pictures, **_assets(drawn))
    )
    write_atomically(directory / PAGE, page)
    write_atomically(directory / MARKDOWN, markdown(found))
    return directory / PAGE


def map_page(title: str, program: Program, maps: Sequence[PicturedMap]) -> str:
    """A page with nothing but one program's maps."""
    template = _environment().get_template("map.html")
    return template.render(title=title, **_assets(_drawn(program, maps)))


def result_page(result: SolveResult) -> str:
    """A page with the maps of one solved program: ours, and production's where known."""
    order = result.copy_order
    maps = [PicturedMap(result.solution.solver, result.memory_map, order)]
    if result.production_map is not None:
        maps.append(PicturedMap("production", result.production_map, order))
    title = f"{result.program.name} on {result.program.machine.chip}"
    return map_page(title, result.program, maps)


def _pictures(directory: Path, report: Report, say: Say | None) -> list[dict[str, Any]]:
    """Per program the best solver's map beside production's."""
    best: dict[str, ProgramResult] = {}
    for result in report.results:
        known = best.get(result.program)
        if known is None or result.latency_seconds < known.latency_seconds:
            best[result.program] = result
    work = partial(_picture, directory, report.settings.model)
    return on_all_processors(work, list(best.values()), "programs drawn", say)


def _picture(directory: Path, model: TimeModel, result: ProgramResult) -> dict[str, Any]:
    loaded = load_program(result.row.source, times=model.times, busy=model.busy)
    path = map_path(directory, result.row)
    order = model.copy_order
    maps = []
    if path.exists():
        maps.append(PicturedMap(result.solver, load_map(path, loaded.program), order))
    if loaded.production_map is not None:
        maps.append(PicturedMap("production", loaded.production_map, order))
    return _drawn(loaded.program, maps)


def _drawn(program: Program, maps: Sequence[PicturedMap]) -> dict[str, Any]:
    return {
        "program": program_document(program),
        "maps": [map_document(program, pictured) for pictured in maps],
    }


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("experiments.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def _assets(data: object) -> dict[str, str]:
    """What a page carries along; no `<` in data, which could end the script that holds it."""
    folder = resources.files("experiments.report")
    return {
        "style": (folder / "style.css").read_text(encoding="utf-8"),
        "viewer": (folder / "viewer.js").read_text(encoding="utf-8"),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
