"""What the generalist is trained on: corpus programs, variants of them, and generated ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from agents.programs import PlayedProgram
from experiments.generalist.settings import GeneralistSettings
from experiments.inputs import load_program
from hlo_graphs import corpus
from hlo_graphs.errors import InputError
from hlo_graphs.program import Program
from malloc_game.generator import Family, random_program
from malloc_game.turn_table import turn_table

UNSEEN_SEED = 10_000
"""Added to a seed: programs drawn from it are in no training, which draws from small ones."""

_VALIDATION_PERIOD = 3
"""Every how many families of the train split one is kept apart."""

_MOST_TRAINED_ACCESSES = 1600
"""Of generated programs."""

_LEAST_ITEMS = 8
"""Programs with fewer are left out: they teach nothing and finish in a move or two."""


def training_programs(settings: GeneralistSettings) -> list[Program]:
    """Corpus programs, then generated ones, with something to decide.

    Raises:
      InputError: for a corpus program that is not trained on.
    """
    known = corpus_programs(validation=False)
    chosen = [
        load_program(name).program for name in chosen_names(settings.programs, known, "to train on")
    ]
    fitting = [p for p in chosen if p.num_accesses <= settings.most_accesses]
    rng = np.random.default_rng(settings.seed)
    variants = [variant(program, rng) for program in fitting for _ in range(settings.num_variants)]
    generated = generated_programs(settings.num_generated, settings.seed, _MOST_TRAINED_ACCESSES)
    programs = [*fitting, *variants, *generated]
    played = (p for p in programs if turn_table(p).num_items >= _LEAST_ITEMS)
    return [program for program in played if not PlayedProgram.of(program).is_decided]


def corpus_programs(*, validation: bool) -> tuple[str, ...]:
    """Names of the train split: of the families kept apart for validation, or of the others."""
    train = [family for family in corpus.families().values() if family.split == "train"]
    apart = {family.name for family in train[_VALIDATION_PERIOD - 1 :: _VALIDATION_PERIOD]}
    names = corpus.split().train
    return tuple(name for name in names if (corpus.family_of(name).name in apart) == validation)


def chosen_names(names: tuple[str, ...], known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """`names` of programs that are `what`, or all that are known.

    Raises:
      InputError: for one that is not known.
    """
    for name in names:
        if name not in known:
            raise InputError(f"{name}: not one of the programs {what} ({', '.join(known)})")
    return names or known


def variant(program: Program, rng: np.random.Generator) -> Program:
    """`program` with a sixth of its fast memory or more, and faster or slower copies.

    Slow accesses take as long as they did.
    """
    capacity_bytes = int(program.capacity_bytes * np.exp(rng.uniform(np.log(1 / 6), 0)))
    speed = program.machine.slow_bytes_per_second * float(
        np.exp(rng.uniform(np.log(0.5), np.log(2)))
    )
    smaller = program.with_capacity(capacity_bytes)
    machine = replace(smaller.machine, slow_bytes_per_second=speed)
    name = f"{program.name}@{capacity_bytes / 2**20:.1f}MiB,{speed / 1e9:.0f}GB/s"
    return replace(smaller, name=name, machine=machine)


def generated_programs(count: int, seed: int, most_accesses: int = 500) -> list[Program]:
    """Programs of all families, sizes, pressures and intensities, drawn from `seed`."""
    rng = np.random.default_rng(seed)
    families = list(Family)
    return [
        random_program(
            int(rng.integers(2**31)),
            family=families[number % len(families)],
            num_accesses=int(np.exp(rng.uniform(np.log(40), np.log(most_accesses)))),
            pressure=float(np.exp(rng.uniform(np.log(1.2), np.log(8)))),
            intensity=float(np.exp(rng.uniform(np.log(0.2), np.log(3)))),
            max_size_units=int(rng.integers(4, 64)),
            num_lanes=int(rng.integers(1, 3)),
        )
        for number in range(count)
    ]
