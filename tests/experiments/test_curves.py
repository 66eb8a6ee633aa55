"""Curves of a training run, from its metrics alone."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from experiments.curves import curve, curves_svg, main
from experiments.metrics import (
    METRICS,
    VALIDATION,
    append_metrics,
    forget_metrics_after,
    read_metrics,
)
from hlo_graphs.errors import InputError

LINES = [{"num_updates": n, "policy_loss": 1 / n, "share_of_best": None} for n in range(1, 101)]


def test_a_point_is_the_mean_of_a_part_of_the_run() -> None:
    points = curve(LINES, "policy_loss")
    assert len(points) == 40
    assert points[0] == (3, pytest.approx((1 + 1 / 2 + 1 / 3) / 3))
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[-1][0] == 100
    assert curve(LINES, "share_of_best") == []
    assert curve([{"num_updates": 1, "policy_loss": float("nan")}], "policy_loss") == []


def test_shares_of_hardly_any_variance_do_not_hide_the_others() -> None:
    lines = [{"num_updates": at, "value_explained": share} for at, share in ((1, -1e6), (2, 0.5))]
    assert curve(lines, "value_explained") == [(1, -1), (2, 0.5)]


def test_the_picture_has_what_the_run_has(tmp_path: Path) -> None:
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / METRICS).write_text(text + '{"num_upd')
    svg = curves_svg(tmp_path)
    ElementTree.fromstring(svg)
    assert "Losses" in svg
    assert "Play" not in svg
    (tmp_path / VALIDATION).write_text('{"num_updates": 50, "score": 0.5}\n')
    main([str(tmp_path), "-o", str(tmp_path / "curves.svg")])
    assert "validation" in (tmp_path / "curves.svg").read_text()


@pytest.mark.parametrize(
    ("text", "words"),
    [(None, "cannot read"), (b"", "no metrics yet"), (b"\xff\n", "not the metrics of a run")],
)
def test_no_metrics_is_the_users_error(tmp_path: Path, text: bytes | None, words: str) -> None:
    if text is not None:
        (tmp_path / METRICS).write_bytes(text)
    with pytest.raises(InputError, match=words):
        curves_svg(tmp_path)


def test_what_came_after_a_checkpoint_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    forget_metrics_after(path, "num_updates", 3)
    assert not path.exists()
    for line in LINES[:5]:
        append_metrics(path, line)
    path.write_text(path.read_text() + '{"num_updates": 6')
    forget_metrics_after(path, "num_updates", 3)
    append_metrics(path, LINES[9])
    assert [line["num_updates"] for line in read_metrics(path)] == [1, 2, 3, 10]


@pytest.mark.parametrize("damage", [b"", b'{"x": 1}\n', b"[]\n", b"{]\n", b"\xff\n", b"\0\n"])
def test_a_damaged_line_does_not_spoil_those_to_come(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / METRICS
    half = b'{"num_updates": 1, "x'
    path.write_bytes(damage + half)
    forget_metrics_after(path, "num_updates", 3)
    append_metrics(path, LINES[0])
    path.write_bytes(path.read_bytes() + damage + half)
    forget_metrics_after(path, "num_updates", 3)
    append_metrics(path, LINES[1])
    assert [line["num_updates"] for line in read_metrics(path)] == [1, 2]


def test_metrics_of_something_else_are_no_curves(tmp_path: Path) -> None:
    metrics = tmp_path / METRICS
    for lines, message in (
        ("[1]\n", "lines without num_updates"),
        ('{"loss": 1}\n', "lines without num_updates"),
        ('{"num_updates": 1, "other": 2}\n', "none that there is a panel for"),
    ):
        metrics.write_text(lines)
        with pytest.raises(InputError, match=message):
            curves_svg(tmp_path)
