"""Names that contain carriage returns and formulas, in reports and tables."""

from dataclasses import replace
from pathlib import Path

import pytest

from lmfn.cells import from_cell, one_line, to_cell
from lmfn.evaluation.results import ImageResult, Journal
from lmfn.files import DeblurSummary, plan

NAMES = ["=1+1", "+a", "-a", "@a", "'a", "''a", "\ra", "a\r\nb", "a", "a,b", 'a"b']


@pytest.mark.parametrize("name", NAMES)
def test_names_come_back_and_are_no_formulas(name: str, tmp_path: Path) -> None:
    assert from_cell(to_cell(name)) == name
    assert to_cell(name)[0] not in "=+-@\t\r"
    journal = Journal(tmp_path, {}, ["psnr"])
    journal.begin()
    row = ImageResult(name, 1, 2, {"psnr": 3.0}, {"psnr": 4.0}, 5.0)
    journal.add([row, replace(row, name="last")])
    journal.begin()
    assert journal.rows() == {name: row, "last": replace(row, name="last")}


def test_reports_have_a_line_per_file(tmp_path: Path) -> None:
    (tmp_path / "a\rb\nc\x1b[2J.png").touch()
    assert one_line("a\rb\nc\x1b\udcff é") == r"a\rb\nc\x1b\udcff é"
    planned = plan([tmp_path])
    for report in (str(planned), str(DeblurSummary(failed=[(tmp_path, f"{planned.jobs[0][0]}: broken")]))):
        assert r"/a\rb\nc\x1b[2J.png" in report
        assert len(report.splitlines()) <= 2
