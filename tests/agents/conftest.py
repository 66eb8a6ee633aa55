from __future__ import annotations

from pathlib import Path

import pytest

from agents.compilation import CACHE_VARIABLE


@pytest.fixture(autouse=True, scope="session")
def _compiled_code_of_tests(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps tests from writing into the user's cache."""
    folder: Path = tmp_path_factory.mktemp("compiled")
    patch = pytest.MonkeyPatch()
    patch.setenv(CACHE_VARIABLE, str(folder))
