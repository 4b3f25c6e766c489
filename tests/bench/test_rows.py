"""Rows: written one by one, read strictly, compared."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import compare
from bench.rows import Kernel, Row, RowFile, Shape, read, text

Make = Callable[..., Row]


def test_what_is_written_is_read(row: Make, tmp_path: Path) -> None:
    kernel = Kernel("stage", {"BLOCK_H": 8, "num_warps": 4}, 159, 0, 57_392)
    rows = [row(kernels=(kernel,)), row(mode="full"), row(shape=Shape(1, 4, 50, 9, 8), l2="warm")]
    with RowFile(tmp_path / "new" / "ops.jsonl") as file:
        for one in rows:
            file.add(one)
            assert text(one) in file.path.read_text(), "on the disk before the next is measured"
    assert read(file.path) == rows


def test_of_the_same_measurement_the_last_counts(row: Make, tmp_path: Path) -> None:
    path = tmp_path / "ops.jsonl"
    for p50 in (1.0, 1.05):
        with RowFile(path) as file:
            file.add(row(p50=p50))
    assert [r.p50 for r in read(path)] == [1.05]


def without(*path: str) -> Callable[[dict[str, Any]], None]:
    def change(found: dict[str, Any]) -> None:
        for name in path[:-1]:
            found = found[name]
        del found[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("p50"), "line 2: the field 'p50' of the row is missing"),
        (without("machine", "driver"), "line 2: the field 'driver' of machine is missing"),
        (without("kernels"), "line 2: the field 'kernels' of the row is missing"),
        (lambda r: r.update(speed=3), "line 2: the field 'speed' of the row is unknown"),
        (lambda r: r.update(p50="1"), "line 2: the field 'p50' is '1'"),
        (lambda r: r.update(p50=float("nan")), "line 2: the field 'p50' is nan"),
        (lambda r: r.update(n=2.5), "line 2: the field 'n' is 2.5"),
        (lambda r: r.update(mode="train"), "line 2: the field 'mode' is 'train'"),
        (lambda r: r.update(shape=[1, 2]), "line 2: shape is"),
        (lambda r: r["machine"].update(dirty="no"), "line 2: the field 'dirty' is 'no'"),
        (lambda r: r.update(p20=5.0), "line 2: p20, p50, p80, n are"),
    ],
)
def test_the_reader_names_file_line_and_field(
    row: Make, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path, broken = tmp_path / "ops.jsonl", json.loads(text(row()))
    change(broken)
    path.write_text(text(row(mode="full")) + "\n" + json.dumps(broken) + "\n")
    with pytest.raises(ValueError, match=r"ops\.jsonl, ") as error:
        read(path)
    assert message in str(error.value)


def test_every_field_is_needed(row: Make, tmp_path: Path) -> None:
    path, whole = tmp_path / "ops.jsonl", json.loads(text(row()))
    for name in whole:
        path.write_text(json.dumps({key: value for key, value in whole.items() if key != name}))
        with pytest.raises(ValueError, match=f"line 1: the field '{name}'"):
            read(path)


def test_a_broken_line_stops_a_run_before_it_measures(row: Make, tmp_path: Path) -> None:
    path = tmp_path / "ops.jsonl"
    path.write_text(text(row()) + "\n" + text(row())[:40] + "\n")
    with pytest.raises(ValueError, match="line 2: not valid JSON"), RowFile(path):
        pass


@pytest.mark.parametrize("whole", [0, 1])
def test_a_line_that_a_kill_has_cut_off_is_taken_out(
    row: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: int
) -> None:
    path = tmp_path / "ops.jsonl"
    path.write_text(f"{text(row())}\n" * whole + text(row(mode="full"))[:40])
    with RowFile(path) as file:
        file.add(row(mode="bwd"))
    assert [r.mode for r in read(path)] == ["infer"] * whole + ["bwd"]
    assert "the last line is incomplete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("p20", "p50", "p80", "verdict"),
    [(0.5, 0.6, 0.7, "B is faster"), (1.2, 1.3, 1.4, "B is slower"), (0.8, 0.85, 0.95, "noise")],
)
def test_compare_says_what_is_noise(row: Make, p20: float, p50: float, p80: float, verdict: str) -> None:
    a, b = row(), row(p20=p20, p50=p50, p80=p80, peak_bytes=3 * 2**20)
    table = compare.compared({a.key: a}, {b.key: b})
    assert verdict in table
    assert f"| {1 / p50:.2f} | +2.0 |" in table


def test_compare_refuses_what_has_nothing_in_common(row: Make) -> None:
    a, b = row(), row(op="conv3x3")
    with pytest.raises(ValueError, match="no measurement in common"):
        compare.compared({a.key: a}, {b.key: b})
    other = replace(a, machine=replace(a.machine, device="Another"))
    with pytest.raises(ValueError, match="no measurement in common"):
        compare.compared({a.key: a}, {other.key: other})


def test_compare_refuses_what_is_no_commit(capsys: pytest.CaptureFixture[str]) -> None:
    from bench.__main__ import main

    assert main(["compare", "no-such-commit", "HEAD"]) == 1
    assert "error: no-such-commit is neither a file of rows nor a commit" in capsys.readouterr().err
