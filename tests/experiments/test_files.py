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


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "map.json"
    write_atomically(target, "old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space left"):
            write_atomically(target, "new")
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
def test_memory_that_looks_like_a_folder_holds_files(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        check_writable(Path(folder) / "map.json")
        test_a_failed_write_leaves_the_old_file(Path(folder), monkeypatch)


def test_devices_are_written_as_they_are() -> None:
    check_writable(Path(os.devnull))
    write_atomically(Path(os.devnull), "text")
    assert Path(os.devnull).is_char_device()


def test_what_was_there_leaves_its_permissions(tmp_path: Path) -> None:
    secret = tmp_path / "map.json"
    secret.write_text("old")
    secret.chmod(0o600)
    write_atomically(secret, "new")
    assert secret.stat().st_mode & 0o777 == 0o600


def test_what_is_no_text_is_written_escaped(tmp_path: Path) -> None:
    write_atomically(tmp_path / "map.json", "b\udcff")
    assert (tmp_path / "map.json").read_text() == "b\\udcff"


def test_a_dash_is_no_file() -> None:
    with pytest.raises(InputError, match="name a file"):
        check_writable(Path("-"))
