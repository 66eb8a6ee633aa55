from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from experiments.files import check_writable, write_atomically
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


def test_what_a_link_points_to_is_written(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "map.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    check_writable(link)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    check_writable(pipe)
    write_atomically(pipe, "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a folder /dev/shm")
def test_memory_that_looks_like_a_folder_holds_files() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        check_writable(Path(folder) / "map.json")
        test_a_failed_write_leaves_the_old_file(Path(folder))


def test_devices_are_written_as_they_are() -> None:
    check_writable(Path(os.devnull))
    write_atomically(Path(os.devnull), "text")
    assert Path(os.devnull).is_char_device()
