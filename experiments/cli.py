"""The command line: `malloc-game`.

Everything heavy is imported inside the command that needs it, so that `--help` is instant and
classical solvers never load jax. Exit codes: 0 solved, 1 training diverged, 2 usage, 3 bad input,
4 invalid map, 5 failed rows in an evaluation, 10 no packing exists, 11 none was found in time, 130
interrupted before there was an answer. Output that nobody reads any more ends a command with 1.
"""

from __future__ import annotations

import io
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.console import (
    INTERRUPTED,
    LiveLine,
    print_accesses,
    print_programs,
    print_result,
    print_row,
    show_error,
    show_notes,
    told_in_a_line,
)
from experiments.files import check_writable, write_atomically
from experiments.sizes import parse_size
from hlo_graphs.errors import InputError

if TYPE_CHECKING:
    from experiments.inputs import LoadedProgram
    from experiments.solve import SolveResult

app = typer.Typer(
    name="malloc-game",
    help="Maps a compiled program's tensors into an accelerator's fast memory.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

ProgramArgument = Annotated[
    str,
    typer.Argument(
        metavar="PROGRAM",
        help="A corpus name, a bundle's .before.hlo.gz, a scheduled HLO file, a Program JSON, or -",
    ),
]
ChipOption = Annotated[
    str | None,
    typer.Option(
        "--chip",
        help="Chip name (v4, v5e, v5p, v6e) or chip file; default: the bundle's, else v5e",
    ),
]
CapacityOption = Annotated[
    int | None,
    typer.Option(
        "--capacity",
        parser=parse_size,
        metavar="SIZE",
        help="Fast memory, e.g. 112MiB; default: the chip's",
    ),
]
TimesOption = Annotated[
    str | None,
    typer.Option("--times", help="analytic or calibrated; default: calibrated where known"),
]
ProductionOption = Annotated[
    Path | None, typer.Option("--production", help="Production's compiled module (HLO)")
]
CyclesOption = Annotated[
    Path | None, typer.Option("--cycles", help="The compiler's cycles (.cycles.json)")
]
MaxGamesOption = Annotated[
    int | None,
    typer.Option(
        "--max-games", help="Stop a search by count, not time: same seed and workers, same map"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead")]


@app.command()
def solve(
    program: ProgramArgument,
    chip: ChipOption = None,
    capacity: CapacityOption = None,
    solver: Annotated[
        str, typer.Option("--solver", help="See `malloc-game solvers`")
    ] = "portfolio",
    time_limit: Annotated[float, typer.Option("--time-limit", help="Seconds")] = 10.0,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    gap: Annotated[float, typer.Option("--gap", help="Stop within this of the bound")] = 0.0,
    workers: Annotated[int, typer.Option("--workers", help="Processes or threads to use")] = 2,
    max_games: MaxGamesOption = None,
    bound: Annotated[
        float,
        typer.Option("--bound", help="Seconds more for a certified bound, unless it is optimal"),
    ] = 0.0,
    times: TimesOption = None,
    copy_order: Annotated[str, typer.Option("--copy-order", help="deadline or fifo")] = "deadline",
    production: ProductionOption = None,
    cycles: CyclesOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the map here as JSON")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="A trained agent's, for --solver agent and its like"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Draw the maps into this HTML file")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Find a memory map for one program, checked and timed beside production's."""
    from experiments.solve import solve as run

    _check_outputs((output, picture), (program, production, cycles, chip))
    loaded = _load(program, chip, capacity, times, production, cycles)
    with LiveLine(loaded, enabled=not as_json) as live:
        result = run(
            loaded,
            solver=solver,
            time_limit_seconds=time_limit,
            seed=seed,
            gap=gap,
            workers=workers,
            max_games=max_games,
            bound_seconds=bound,
            copy_order=copy_order,
            checkpoint=checkpoint,
            on_progress=live.update,
        )
    _answer(result, output, picture, as_json)


def _load(
    program: str,
    chip: str | None,
    capacity_bytes: int | None,
    times: str | None,
    production: Path | None,
    cycles: Path | None,
) -> LoadedProgram:
    """The program that is named, having told what of it is not compared."""
    from experiments.inputs import load_program

    loaded = load_program(
        program,
        chip=chip,
        capacity_bytes=capacity_bytes,
        times=times,
        production=production,
        cycles=cycles,
    )
    show_notes(*loaded.notes)
    return loaded


def _check_outputs(
    outputs: Sequence[Path | None], inputs: Sequence[str | Path | None] = ()
) -> None:
    """Before any time is spent: they can be written, are several, and none is what is read."""
    read = {Path(path).resolve() for path in inputs if path is not None}
    written: set[Path] = set()
    for path in outputs:
        if path is None:
            continue
        check_writable(path)
        if path.resolve() in read:
            raise InputError(f"{path}: it is read, and would be written over")
        if path.resolve() in written:
            raise InputError(f"{path}: both the map and its picture would be written there")
        written.add(path.resolve())


def _answer(result: SolveResult, output: Path | None, picture: Path | None, as_json: bool) -> None:
    """Writes the files of a solved program that were asked for, and prints it."""
    written, failures = [], []
    for what, path, text in (
        ("map", output, result.map_json),
        ("picture", picture, lambda: _page_of(result)),
    ):
        if path is None:
            continue
        try:
            write_atomically(path, text())
            written.append(f"{what} written to {path}")
        except (InputError, OSError) as error:  # What was found is said all the same.
            failures.append(error)
    if as_json:
        print(result.to_json())
    else:
        print_result(result, written)
    for failure in failures:
        raise failure


def _page_of(result: SolveResult) -> str:
    from experiments.report.page import result_page

    return result_page(result)


@app.command()
def validate(
    program: ProgramArgument,
    memory_map: Annotated[Path, typer.Argument(metavar="MAP", help="What `solve -o` wrote")],
    chip: ChipOption = None,
    capacity: CapacityOption = None,
    times: TimesOption = None,
    cycles: CyclesOption = None,
    copy_order: Annotated[str, typer.Option("--copy-order", help="deadline or fifo")] = "deadline",
    as_json: JsonOption = False,
) -> None:
    """Check a map against every rule, and time it. Exit code 4 if it is invalid."""
    from experiments.inputs import load_map, load_program
    from malloc_game.simulate import check_copy_order, simulate
    from malloc_game.validate import validate as find_violations

    check_copy_order(copy_order)
    loaded = load_program(program, chip=chip, capacity_bytes=capacity, times=times, cycles=cycles)
    answer = load_map(memory_map, loaded.program)
    violations = find_violations(loaded.program, answer)
    document: dict[str, Any] = {
        "program": loaded.program.name,
        "chip": loaded.program.machine.chip,
        "times": loaded.program.times,
        "copy_order": copy_order,
        "valid": not violations,
        "violations": [violation.message for violation in violations],
        "latency_seconds": None,
        "stall_seconds": None,
    }
    if not violations:
        simulation = simulate(loaded.program, answer, copy_order)
        document["latency_seconds"] = simulation.latency_seconds
        document["stall_seconds"] = simulation.stall_seconds
    if as_json:
        print(json.dumps(document))
    elif violations:
        for violation in violations:
            print(violation.message)
        print(f"{len(violations)} violation(s): the map is invalid")
    else:
        model = f"{document['chip']}, {document['times']} times"
        print(f"valid; {document['latency_seconds'] * 1e3:.6f} ms ({model})")
    raise typer.Exit(4 if violations else 0)


@app.command()
def programs(
    measure: Annotated[
        bool, typer.Option("--measure", help="Time and bound those that have no figures yet")
    ] = False,
    again: Annotated[
        bool, typer.Option("--measure-all", help="Time and bound all of them again (minutes)")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the table here as JSON")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the programs of the corpus, with what there is to gain on each."""
    from experiments.programs import committed_table, measured_table, unmeasured

    if output is not None:
        check_writable(output)
    rows = [] if again else committed_table()
    if measure or again:
        rows = measured_table(rows, lambda row: print(f"{row.name} measured", file=sys.stderr))
    document = json.dumps([row.to_document() for row in rows], indent=0)
    if output is not None:
        write_atomically(output, document + "\n")
    others = unmeasured(rows)
    if as_json:
        print(document)
    else:
        print_programs(rows, others)
    if others:
        show_notes(f"{len(others)} programs have no figures yet: --measure makes them")


@app.command()
def solvers() -> None:
    """List the solvers and what they do, the default first."""
    from experiments.solvers_by_name import all_solver_ideas

    ideas = all_solver_ideas()
    width = max(map(len, ideas))
    for name, idea in ideas.items():
        print(f"{name:<{width}}  {idea}")


@app.command()
def info(
    program: ProgramArgument,
    chip: ChipOption = None,
    capacity: CapacityOption = None,
    times: TimesOption = None,
    production: ProductionOption = None,
    cycles: CyclesOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the Program here as JSON")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Describe a program: sizes, loops, times, and what its slow accesses cost."""
    from experiments.programs import describe

    _check_outputs((output,), (program, production, cycles, chip))
    loaded = _load(program, chip, capacity, times, production, cycles)
    if output is not None:
        write_atomically(output, loaded.program.to_json() + "\n")
    description = describe(loaded)
    if as_json:
        print(json.dumps(description.to_document()))
    else:
        print_accesses(description)


@app.command()
def extract(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="module:function, or an HLO file")
    ],
    chip: Annotated[str, typer.Option("--chip", help="v4, v5e, v5p or v6e")] = "v5e",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the bundle")] = Path(),
    name: Annotated[str | None, typer.Option("--name", help="Name of the bundle")] = None,
    fast_memory: Annotated[
        int | None,
        typer.Option(
            "--fast-memory",
            parser=parse_size,
            metavar="SIZE",
            help="Compile for another size, e.g. 64MiB",
        ),
    ] = None,
    time_limit: Annotated[
        float, typer.Option("--time-limit", help="Seconds for all its compiles")
    ] = 1800.0,
) -> None:
    """Compile a JAX function or an HLO file for a TPU that is not there, and keep what it says."""
    from hlo_graphs.compile import extract as run

    bundle = run(
        target,
        chip,
        output,
        name=name,
        vmem_bytes=fast_memory,
        time_limit_seconds=time_limit,
        progress=lambda message: print(message, file=sys.stderr),
    )
    print(bundle.before)


@app.command()
def evaluate(
    programs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROGRAM]...",
            help="Corpus names, or bundles or HLO files of your own; default: the suite",
        ),
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", help="all (default), train or test; no programs then")
    ] = None,
    solvers: Annotated[
        str, typer.Option("--solvers", help="Comma-separated names")
    ] = "greedy,large-neighbourhood,cross-entropy,local-search,portfolio",
    time_limit: Annotated[float, typer.Option("--time-limit", help="Seconds per task")] = 10.0,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs of each solver")] = 1,
    workers: Annotated[int, typer.Option("--workers", help="Tasks at a time")] = 1,
    cores: Annotated[int, typer.Option("--cores", help="Processes or threads per solver")] = 2,
    times: Annotated[str, typer.Option("--times", help="calibrated or analytic")] = "calibrated",
    copy_order: Annotated[str, typer.Option("--copy-order", help="deadline or fifo")] = "deadline",
    busy: Annotated[
        str, typer.Option("--busy", help="bytes, or slow: a slow access keeps the bus busy")
    ] = "bytes",
    any_processor: Annotated[
        bool,
        typer.Option("--any-processor", help="Add to a table begun on another processor, too"),
    ] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the table")] = Path(
        "results"
    ),
) -> None:
    """Run every solver on every program; what is finished is kept and not done again."""
    from experiments.evaluate import evaluate as run
    from experiments.evaluate import failed_of, programs_of, shell_command
    from experiments.tasks import EvaluationSettings

    if programs and suite is not None:
        raise InputError("programs are named: --suite cannot be given with them")
    _tell_of_sharing(workers, cores)
    settings = EvaluationSettings(
        programs=tuple(programs) if programs else programs_of(suite or "all"),
        solvers=tuple(name.strip() for name in solvers.split(",")),
        seeds=tuple(range(seeds)),
        time_limit_seconds=time_limit,
        workers_per_task=cores,
        times=times,
        copy_order=copy_order,
        busy=busy,
    )
    rows = run(
        settings,
        output,
        parallel=workers,
        any_processor=any_processor,
        command=shell_command(),
        on_row=print_row,
    )
    failed = failed_of(settings, rows)
    print(f"{len(rows)} rows in {output}, {len(failed)} failed")
    raise typer.Exit(5 if failed else 0)


def _tell_of_sharing(tasks: int, cores: int) -> None:
    """Says so if there are too few processors for all tasks at a time."""
    from solvers.children import usable_processors

    if tasks * cores > usable_processors():
        show_notes(
            f"{tasks} tasks at a time with {cores} each are more than the {usable_processors()} "
            "processors there are: they share them, and their rows do not tell"
        )


@app.command()
def train(
    programs: Annotated[
        list[str] | None,
        typer.Argument(metavar="PROGRAM...", help="As for solve; none with --resume"),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The run's folder")] = Path("run-agent"),
    preset: Annotated[
        str | None, typer.Option("--preset", help="tiny (default), small, large or generalist")
    ] = None,
    time_limit: Annotated[float, typer.Option("--time-limit", help="Seconds")] = 300.0,
    simulations: Annotated[
        int | None, typer.Option("--simulations", help="Per move; default: the preset's")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="What the search steps: learned or exact")
    ] = None,
    demonstrations: Annotated[
        str | None,
        typer.Option("--demonstrations", help="Solvers that show maps; default: greedy,xla-msa"),
    ] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Show nothing; learn from own games alone")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="A run or checkpoint to begin from")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run stopped")] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Default: 0")] = None,
) -> None:
    """Train the agent on one program or many; a run survives being killed."""
    from experiments.inputs import need_extra

    need_extra("mctx", "train", "training the agent")
    from experiments.train import TrainSettings, print_training
    from experiments.train import train as run

    if resume and from_scratch:
        raise InputError("--resume brings its own settings: --from-scratch cannot be given with it")
    if from_scratch and demonstrations:
        raise InputError("--from-scratch shows nothing: --demonstrations cannot be given with it")
    if demonstrations is None:
        demonstrations = "" if resume else "greedy,xla-msa"
    names = (name.strip() for name in demonstrations.split(","))
    shown = () if from_scratch else tuple(filter(None, names))
    settings = TrainSettings(
        programs=tuple(programs or ()),
        out=out,
        preset=preset,
        time_limit_seconds=time_limit,
        simulations=simulations,
        model=model,
        demonstrations=shown,
        weights=weights,
        resume=resume,
        seed=seed,
    )
    print_training(run(settings))


@app.command()
def play(
    program: ProgramArgument,
    policy: Annotated[
        str, typer.Option("--policy", help="random, greedy, keep or drop")
    ] = "greedy",
    seed: Annotated[int, typer.Option("--seed", help="Of the random policy")] = 0,
    chip: ChipOption = None,
    capacity: CapacityOption = None,
    times: TimesOption = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", help="Draw the finished game into this file")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the picture at the end")] = False,
) -> None:
    """Watch a game of a program: one line a decision, and the picture at the end."""
    from experiments.inputs import load_program, need_extra

    need_extra("jax", "train", "playing the game")
    from experiments.play import play as run

    if svg is not None:
        check_writable(svg)
    loaded = load_program(program, chip=chip, capacity_bytes=capacity, times=times)
    played = run(
        loaded.program,
        policy,
        seed=seed,
        on_turn=None if quiet else lambda turn: print(turn, flush=True),
    )
    print(played.picture())
    print(f"{len(played.turns)} decisions, {played.saved:.4%} of the all-slow latency saved")
    if svg is not None:
        write_atomically(svg, played.svg())


@app.command()
def pack(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="MiniMalloc's CSV: id, lower, upper, size; or -"),
    ],
    capacity: Annotated[
        int,
        typer.Option("--capacity", parser=parse_size, metavar="SIZE", help="E.g. 1MiB or 1048576"),
    ],
    time_limit: Annotated[float, typer.Option("--time-limit", help="Seconds")] = 10.0,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    workers: Annotated[int, typer.Option("--workers", help="Threads to use")] = 2,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the offsets here, if all fit")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Give buffers of fixed lifetimes addresses below a capacity. Exit code 10: there are none."""
    from experiments.pack import EXIT_CODES, pack_file

    _check_outputs((output,), (file,))
    result = pack_file(file, capacity, time_limit_seconds=time_limit, seed=seed, workers=workers)
    if output is not None and result.packing.complete:
        write_atomically(output, result.to_csv())
    print(result.to_json() if as_json else result.to_sentence())
    raise typer.Exit(EXIT_CODES[result.packing.status])


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an evaluation")],
    compare: Annotated[
        Path | None, typer.Option("--compare", help="An older evaluation; names what got slower")
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Draw the maps too")] = True,
) -> None:
    """Write an evaluation's report: one offline HTML page, and Markdown."""
    from experiments.report.page import write_report

    page = write_report(
        directory, compare, pictures=pictures, say=lambda text: print(text, file=sys.stderr)
    )
    print(page)


def main() -> None:
    """Entry point.

    What ends a process politely (SIGTERM, as `timeout` sends it, or SIGHUP from a terminal that is
    closed) is taken like Ctrl-C, but for a hang-up that is ignored, as `nohup` has it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # A file's name may be no text.
            stream.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    with told_in_a_line():
        try:
            app(standalone_mode=True)
        except SystemExit as ended:
            if ended.code == INTERRUPTED:  # which is how typer ends on Ctrl-C, without a word
                show_error("interrupted")
            raise


if __name__ == "__main__":
    main()
