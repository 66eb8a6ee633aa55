"""The corpus: real programs compiled for real chips, committed as bundles, and their split.

`split.json` assigns every model *family* to "train" or "test" by a rule stated in it; it was
committed before anything was tuned. `docs/corpus.md` describes the programs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from hlo_graphs.bundle import Bundle, bundle_in, split_key
from hlo_graphs.errors import InputError, did_you_mean

DIRECTORY = Path(__file__).parent
"""Where the bundles lie."""

SplitName = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Family:
    """A model family: the programs that are kept on one side of the split."""

    name: str
    domain: str
    split: SplitName
    programs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """Corpus names (`NAME.CHIP[.64MiB]`) on either side of the split, each sorted."""

    train: tuple[str, ...]
    test: tuple[str, ...]


def names() -> tuple[str, ...]:
    """All committed programs, sorted: `NAME.CHIP[.64MiB]`."""
    suffix = ".before.hlo.gz"
    return tuple(sorted(path.name.removesuffix(suffix) for path in DIRECTORY.glob("*" + suffix)))


def bundle(name: str) -> Bundle:
    """The bundle of a corpus program; raises `InputError` with near names if there is none.

    A name without its chip (`lstm_forward`) means the v5e compile with its full memory.
    """
    known = names()
    for key in (name, f"{name}.v5e"):
        if key in known:
            return bundle_in(DIRECTORY, key)
    near = did_you_mean(name, known, 3)
    raise InputError(f"{name}: neither a file nor a corpus program{near}; `programs` lists them")


@cache
def families() -> Mapping[str, Family]:
    """The model families of the split, in the order its rule counts them."""
    document = json.loads((DIRECTORY / "split.json").read_text(encoding="utf-8"))
    return {
        name: Family(name, entry["domain"], entry["split"], tuple(entry["programs"]))
        for name, entry in document["families"].items()
    }


def family_of(name: str) -> Family:
    """The family of a corpus program; raises `InputError` if the split does not know it."""
    model, _, _ = split_key(name)
    for family in families().values():
        if model in family.programs:
            return family
    raise InputError(f"{name}: no family of hlo_graphs/corpus/split.json has this program")


def split() -> Split:
    """The committed split of all corpus programs."""
    sides: dict[SplitName, list[str]] = {"train": [], "test": []}
    for name in names():
        sides[family_of(name).split].append(name)
    return Split(train=tuple(sides["train"]), test=tuple(sides["test"]))
