"""Tables and plots from rows; the tables in the docs are those of the committed rows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench import report
from bench.__main__ import main
from bench.rows import Row, RowFile, Shape
from bench.tables import TABLES

Make = Callable[..., Row]


@pytest.mark.parametrize("path", report.documents(), ids=lambda path: path.name)
def test_the_docs_tables_are_those_of_the_rows(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    made = report.filled(text, report.load(report.RESULTS), path.parent, report.RESULTS)
    assert made == text, "run `python -m bench report`"


@pytest.fixture
def results(row: Make, tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    with RowFile(folder / "some-device" / "ops.jsonl") as file:
        for mode in ("infer", "full"):
            for op, faster in (("rfdb", 2.0), ("layer_attention", 0.5)):
                for l2 in ("cold", "warm"):
                    file.add(row(op=op, mode=mode, l2=l2))
                    for provider, times in (("compile", 1.0), ("eager-channels-last", 1.5)):
                        p50 = faster * times
                        file.add(row(op=op, mode=mode, l2=l2, provider=provider, p20=p50, p50=p50, p80=p50))
    with RowFile(folder / "some-device" / "memory.jsonl") as file:
        for provider, exponent in (("triton", 1.0), ("eager-channels-last", 1.5)):
            for side in (64, 128, 256, 512):
                p50 = (side**2) ** exponent / 1e4
                for mode in ("infer", "full"):
                    size = Shape(1, 4, 50, side, side)
                    times = {"p20": p50, "p50": p50, "p80": p50, "peak_bytes": 1000 + 100 * side**2}
                    file.add(row(op="layer_attention", provider=provider, mode=mode, shape=size, **times))
    with RowFile(folder / "some-device" / "model.jsonl") as file:
        file.add(row(op="lmfn", provider="for_inference", l2="host", shape=Shape(8, 4, 50, 720, 1280), p80=16, p50=16))
        for provider, dtype, p50 in (("eager", "float32", 1234.5), ("for_inference", "float32", 99.95)):
            shape, times = Shape(1, 4, 50, 720, 1280), {"p20": p50, "p50": p50, "p80": p50}
            file.add(row(op="lmfn", provider=provider, dtype=dtype, l2="host", shape=shape, **times))
        for provider, p50 in (("torch", 2.0), ("eager-channels-last", 3.0)):
            for op, shape in (("rfdb", Shape(1, 1, 50, 180, 320)), ("stem", Shape(1, 1, 64, 720, 1280))):
                times = {"p20": p50, "p50": p50, "p80": p50, "roofline": 0.25}
                file.add(row(op=op, provider=provider, mode="infer", l2="host", shape=shape, **times))
    return folder


def test_tables(results: Path, tmp_path: Path) -> None:
    doc = tmp_path / "doc.md"
    names = "".join(f"<!-- bench:{name} -->\nold\n<!-- /bench -->\n" for name in report.TABLES)
    doc.write_text(f"before\n{names}after\n")
    assert main(["report", "--results", str(results), "--docs", str(doc)]) == 0
    text = doc.read_text()
    assert "old" not in text
    assert "before" in text
    assert (
        "| `rfdb` | infer | bfloat16 | 1x50x180x320 | 1 (0.9 to 1.1) | 1 (0.9 to 1.1) | compile 2 (2 to 2) | 2.00 |"
        in text
    )
    assert "| 0.50 | 50% |" in text, "where another is faster the table says so"
    assert "| 16 (0.9 to 16) | 2 |" in text, "an image of eight takes an eighth"
    assert "float32 |\n| --- | --- |\n| for_inference | 100 |\n| eager | 1,234 |" in text, "fastest first, no exponents"
    assert "| RFDB | `rfdb` | 1x50x180x320 | 4 | 8 | 80.0% | 2 | 25% | 12 |" in text, "four of them in the network"
    assert "| total |  |  |  | 10 | 100% | 2.5 | 25% | 15 |" in text
    growth = [line for line in text.splitlines() if line.startswith("| `layer_attention` |") and "pixels" in line]
    assert [line.split(" | ")[7:9] for line in growth] == [
        ["1.00", "1.00"],
        ["1.00", "1.00"],
        ["1.50", "1.00"],
        ["1.50", "1.00"],
    ]
    assert all(line.endswith("| 100 |") for line in growth), "bytes per pixel"
    assert main(["report", "--results", str(results), "--docs", str(doc)]) == 0
    assert doc.read_text() == text
    for name in ("roofline", "speedup", "memory", "time"):
        assert (results / "some-device" / f"{name}.png").stat().st_size > 10_000
        assert f"![{name}, some-device](results/some-device/{name}.png)" in text


def test_a_table_names_every_commit_of_its_rows(row: Make) -> None:
    """As `make bench` measures again what it has time for."""
    old = row(op="rfdb")
    rows = [old, row(op="conv3x3", machine=replace(old.machine, commit="decade", dirty=True, torch="2.12"))]
    said = "torch 2.11 and torch 2.12, Triton 3.6.0, Python 3.11, commit c0ffee and commit decade with changes; "
    assert said in TABLES["ops"]({"ops": rows}, Path())


def test_a_table_that_does_not_exist_is_refused(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doc = tmp_path / "doc.md"
    doc.write_text("<!-- bench:opps -->\n<!-- /bench -->\n")
    assert main(["report", "--results", str(results), "--docs", str(doc)]) == 1
    assert "error: there is no table 'opps'" in capsys.readouterr().err
    assert doc.read_text() == "<!-- bench:opps -->\n<!-- /bench -->\n"
