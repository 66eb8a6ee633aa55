"""How fast HLO text is read, as a ratio to XLA's own parser, and how time grows with size.

    python -m experiments.benchmarks.parsing [FILE...]

Prints one row per file: our time, XLA's (`jaxlib._hlo.hlo_module_from_text`, in a child process
since it aborts on some modules), their ratio, and for scale the time of one regular-expression
pass over the same text. Then the time per byte for the largest file's computations repeated 1, 2,
4 and 8 times in one module. Times are CPU time of the thread, the best of several runs: other
processes of a shared machine disturb them least.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.console import told_in_a_line
from hlo_graphs.errors import InputError
from hlo_graphs.parser import parse_module, read_module
from hlo_graphs.text_files import read_text

_REPETITIONS = (1, 2, 4, 8)
_INSTRUCTION = re.compile(r"^ *(ROOT )?%?([\w.-]+) = (.*?) ([\w-]+)\((.*?)\)(.*)$", re.MULTILINE)
_FIRST_COMPUTATION = re.compile(r"^(?=%|ENTRY )", re.MULTILINE)
_ENTRY = re.compile(r"^ENTRY ", re.MULTILINE)
_NAME = re.compile(r"%([\w.\-]+)")
_CHILD_FLAG = "--xla-only"


@dataclass(frozen=True, slots=True)
class Timing:
    """One file's row.

    Attributes:
      name: of the file.
      size_bytes: of the text, unpacked.
      instructions: in all computations.
      ours_seconds: CPU time of `parse_module`.
      xla_seconds: CPU time of XLA's parser, None where it is absent or rejects the text.
      regex_seconds: CPU time of one regular-expression pass.
    """

    name: str
    size_bytes: int
    instructions: int
    ours_seconds: float
    xla_seconds: float | None
    regex_seconds: float

    @property
    def ratio(self) -> float | None:
        """Our time over XLA's."""
        return None if self.xla_seconds is None else self.ours_seconds / self.xla_seconds


@dataclass(frozen=True, slots=True)
class Growth:
    """Time for a module `copies` times as large.

    Attributes:
      copies: how often the computations are repeated.
      size_bytes: of the text.
      seconds: CPU time of `parse_module`.
    """

    copies: int
    size_bytes: int
    seconds: float

    @property
    def nanoseconds_per_byte(self) -> float:
        """Constant if time is linear in size."""
        return 1e9 * self.seconds / self.size_bytes


def best_seconds(action: Callable[[], object], runs: int) -> float:
    """The shortest CPU time of `runs` calls."""
    best = float("inf")
    for _ in range(runs):
        start = time.thread_time()
        action()
        best = min(best, time.thread_time() - start)
    return best


def measure(path: Path, runs: int) -> Timing:
    """Parses one file with both parsers.

    Raises:
      InputError: if our parser does not accept it.
    """
    module = read_module(path)
    text = read_text(path)
    return Timing(
        path.name,
        len(text.encode()),
        sum(len(computation.instructions) for computation in module.computations.values()),
        best_seconds(lambda: parse_module(text, str(path)), runs),
        _xla_seconds(path, runs),
        best_seconds(lambda: sum(1 for _ in _INSTRUCTION.finditer(text)), runs),
    )


def measure_growth(path: Path, runs: int) -> tuple[Growth, ...]:
    """Times modules made of 1, 2, 4, 8 copies of the file's computations."""
    text = read_text(path)
    found = []
    for copies in _REPETITIONS:
        repeated = repeat_computations(text, copies)
        seconds = best_seconds(lambda repeated=repeated: parse_module(repeated), runs)  # type: ignore[misc]
        found.append(Growth(copies, len(repeated.encode()), seconds))
    return tuple(found)


def repeat_computations(text: str, copies: int) -> str:
    """One module with every computation of `text` in it `copies` times under new names."""
    first = _FIRST_COMPUTATION.search(text)
    start = len(text) if first is None else first.start()
    body = text[start:]
    parts = [text[:start]]
    for copy in range(copies):
        renamed = _NAME.sub(rf"%\1.copy{copy}", body)
        parts.append(renamed if copy == copies - 1 else _ENTRY.sub("", renamed))
    return "".join(parts)


def _xla_seconds(path: Path, runs: int) -> float | None:
    command = [sys.executable, "-m", __spec__.name, _CHILD_FLAG, "--runs", str(runs), str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(answer.stdout) if answer.returncode == 0 else None


def _print_xla_seconds(path: Path, runs: int) -> None:
    parse = importlib.import_module("jaxlib._hlo").hlo_module_from_text
    text = read_text(path)
    print(best_seconds(lambda: parse(text), runs))


def _print_timings(timings: Sequence[Timing]) -> None:
    print(
        f"{'file':60} {'KB':>8} {'instr.':>7} {'ours ms':>9} {'XLA ms':>9} {'ratio':>6} "
        f"{'regex ms':>9}"
    )
    for timing in timings:
        xla = "-" if timing.xla_seconds is None else f"{1e3 * timing.xla_seconds:.1f}"
        ratio = "-" if timing.ratio is None else f"{timing.ratio:.2f}"
        print(
            f"{timing.name[:60]:60} {timing.size_bytes / 1e3:8.0f} {timing.instructions:7d} "
            f"{1e3 * timing.ours_seconds:9.1f} {xla:>9} {ratio:>6} "
            f"{1e3 * timing.regex_seconds:9.1f}"
        )
    known = [timing for timing in timings if timing.xla_seconds is not None]
    xla_seconds = sum(timing.xla_seconds or 0.0 for timing in known)
    if xla_seconds:
        ratio_of_sums = sum(timing.ours_seconds for timing in known) / xla_seconds
        print(f"all files: {ratio_of_sums:.2f} times XLA's time")


def _print_growth(name: str, growth: Sequence[Growth]) -> None:
    print(f"growth with size: {name}")
    for point in growth:
        print(
            f"  x{point.copies}: {point.size_bytes / 1e3:8.0f} KB {1e3 * point.seconds:9.1f} ms "
            f"{point.nanoseconds_per_byte:6.1f} ns/byte"
        )


@told_in_a_line()
def main(arguments: Sequence[str] | None = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(prog="experiments.benchmarks.parsing", description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="HLO text, plain or gzipped")
    parser.add_argument("--runs", type=int, default=5, help="the best of so many is taken")
    parser.add_argument(_CHILD_FLAG, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    files = options.files or _corpus()
    if options.xla_only:
        _print_xla_seconds(files[0], options.runs)
        return
    if not files:
        raise InputError("no files given and none in hlo_graphs/corpus")
    timings = [measure(path, options.runs) for path in files]
    _print_timings(timings)
    largest = max(zip(timings, files, strict=True), key=lambda pair: pair[0].size_bytes)[1]
    _print_growth(largest.name, measure_growth(largest, options.runs))


def _corpus() -> list[Path]:
    import hlo_graphs

    folder = Path(hlo_graphs.__file__).parent / "corpus"
    return sorted(folder.glob("*.hlo.gz"))


if __name__ == "__main__":
    main()
