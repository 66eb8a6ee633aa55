from __future__ import annotations

from pathlib import Path

import pytest

from experiments.files import write_atomically
from hlo_graphs.errors import InputError


def test_the_file_appears_whole_and_nothing_else_does(tmp_path: Path) -> None:
    write_atomically(tmp_path / "map.json", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]
    assert (tmp_path / "map.json").read_text() == "text"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "map.json"
    write_atomically(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(target, "\ud800")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_missing_folder_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write there"):
        write_atomically(tmp_path / "absent" / "map.json", "text")
