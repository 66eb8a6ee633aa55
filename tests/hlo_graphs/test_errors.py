"""Errors cross from one process to another as they are."""

from __future__ import annotations

import pickle

import pytest

from hlo_graphs.errors import (
    HloSyntaxError,
    InputError,
    MallocGameError,
    MissingExtraError,
    SourceLocation,
)
from malloc_game.violations import InvalidMapError, Rule, Violation

ERRORS = (
    InputError("no such file"),
    HloSyntaxError(SourceLocation("a.hlo", 3, 4), "'('", "a shape"),
    MissingExtraError("train", "the solver 'agent'"),
    InvalidMapError("program", (Violation(Rule.OVERLAP, "two at one address", (1, 2), (3,)),)),
)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_whole(error: MallocGameError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.exit_code == error.exit_code
    assert vars(again) == vars(error)
