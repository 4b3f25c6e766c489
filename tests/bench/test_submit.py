"""Submitted rows were measured as they state, and everything in bench/results can be read and submitted."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import report
from bench.__main__ import main
from bench.rows import Row, RowFile
from bench.submit import faults_of

Make = Callable[..., Row]
COMMIT = "c0ffee" * 6 + "c0de"


def sound(row: Make, **fields: Any) -> Row:
    made = row(**fields)
    return replace(made, machine=replace(made.machine, commit=COMMIT, copy_gbps=3000.0, matrix_tflops=800.0))


def write(folder: Path, **rows: list[Row]) -> Path:
    for verb, some in rows.items():
        with RowFile(folder / f"{verb}.jsonl") as file:
            for one in some:
                file.add(one)
    return folder


def test_one_file_with_all_rows(row: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ops, model = [sound(row), sound(row, mode="full")], [sound(row, op="lmfn", l2="host")]
    folder = write(tmp_path / "out", ops=ops, model=model)
    (folder / "log.txt").write_text("not for others")
    assert main(["submit", str(folder), "--to", str(tmp_path / "results")]) == 0
    [path] = (tmp_path / "results").iterdir()
    assert path.name == "some-device.jsonl"
    assert str(path) in capsys.readouterr().out
    assert report.load(tmp_path / "results") == {"some-device": {"model": model, "ops": ops}}
    text = "<!-- bench:ops -->\n<!-- /bench -->"
    assert "Some device" in report.filled(text, report.load(tmp_path / "results"), tmp_path, tmp_path / "results")
    assert main(["submit", str(folder), "--to", str(tmp_path / "results")]) == 0, "again, with more rows perhaps"


@pytest.mark.parametrize(
    ("fields", "machine", "fault"),
    [
        ({}, {"dirty": True}, "measured with uncommitted changes"),
        ({}, {"commit": "unknown"}, "commit 'unknown'"),
        ({}, {"driver": "unknown", "triton": "none"}, "driver, triton not known"),
        ({}, {"device": ""}, "device not known"),
        ({"p20": 0.0, "p50": 0.0}, {}, "p50 of 0.0 ms"),
        ({"gbps": 4000.0}, {}, "4000 GB/s, while copies reach 3000"),
        ({"gbps": 16_000.0, "l2": "warm"}, {}, "16000 GB/s"),
        ({"tflops": 1100.0}, {}, "1.1e+03 TFLOP/s, while products reach 800"),
        ({"rms_error": 0.5}, {}, "an RMS error of 0.5"),
        ({"rms_error": 0.02, "dtype": "float32"}, {}, "an RMS error of 0.02"),
        ({"dtype": "int8"}, {}, "dtype int8"),
        ({"peak_bytes": 2**50}, {}, "a peak of"),
        ({"command": "rm -r /"}, {}, "command 'rm -r /'"),
    ],
)
def test_what_cannot_be_so_is_refused(
    row: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fields: dict[str, Any],
    machine: dict[str, Any],
    fault: str,
) -> None:
    wrong = sound(row, **fields)
    wrong = replace(wrong, machine=replace(wrong.machine, **machine))
    folder = write(tmp_path / "out", ops=[sound(row, mode="full"), wrong])
    assert main(["submit", str(folder), "--to", str(tmp_path / "results")]) == 1
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_what_may_be_so_is_not_refused(row: Make) -> None:
    """A warm L2 cache is faster than copies; float32 convolutions may need fewer products; a CPU has no driver."""
    assert not faults_of(sound(row, gbps=6000.0, l2="warm"))
    assert not faults_of(sound(row, tflops=1600.0, dtype="float32"))
    on_a_cpu = sound(row, l2="host")
    machine = replace(on_a_cpu.machine, threads=2, driver="none", cuda="none", cudnn="none", triton="none")
    assert not faults_of(replace(on_a_cpu, machine=machine))


def test_one_run_on_one_device(row: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = sound(row, mode="full")
    folder = write(tmp_path, ops=[sound(row), replace(other, machine=replace(other.machine, device="Another"))])
    assert main(["submit", str(folder), "--to", str(tmp_path / "results")]) == 1
    assert "device: Another, Some device" in capsys.readouterr().err


def test_no_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", str(tmp_path)]) == 1
    assert "contains no rows" in capsys.readouterr().err


def test_a_line_of_a_submission_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "some-device.jsonl").write_text('{"verb": "ops"}\n')
    with pytest.raises(ValueError, match=r"some-device\.jsonl, line 1: it must contain a verb and its row"):
        report.load(tmp_path)


def test_rows_of_a_folder_go_before_those_submitted(row: Make, tmp_path: Path) -> None:
    folder = write(tmp_path / "results" / "some-device", ops=[sound(row), sound(row, mode="full")])
    assert main(["submit", str(folder), "--to", str(tmp_path / "results")]) == 0
    write(folder, ops=[newer := sound(row, p20=0.7, p50=0.8, p80=0.9)])
    found = report.load(tmp_path / "results")["some-device"]["ops"]
    assert found == [sound(row, mode="full"), newer]


def test_the_results_of_this_repository() -> None:
    for device, verbs in report.load(report.RESULTS).items():
        for verb, found in verbs.items():
            for one in found:
                assert not faults_of(one), f"{device}, {verb}, {one.key}"
