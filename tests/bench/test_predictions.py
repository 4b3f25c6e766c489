"""Predictions: the file, and that each is of something that is launched and described."""

import re
from pathlib import Path

import pytest

from bench import predictions
from bench.predictions import FILE, Prediction
from bench.rows import OURS

HEADS = "\t".join(Prediction._fields)


def test_what_holds_is_within_the_factor_in_both_directions() -> None:
    one = Prediction("NVIDIA H200", "frame", "stem_kernel *", None, 50.0, "c0ffee", "stem", "why")
    assert [one.holds(us) for us in (39.9, 40.0, 62.5, 62.6)] == [False, True, True, False]
    assert one.covers("stem_kernel 64-64, 1x360x640")
    assert not one.covers("stem_kernels")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("gpu\tof\n", "line 1: the columns must be gpu, of, part"),
        (f"{HEADS}\nG\tframe\t*\t\t5\tc0ffee\tstem\n", "line 2: not enough values"),
        (f"{HEADS}\nG\tframe\t*\t\tfive\tc0ffee\tstem\twhy\n", "line 2: could not convert string to float: 'five'"),
        (f"{HEADS}\nG\tframe\t*\t\t5\t\tstem\twhy\n", "line 2: only before may be empty"),
    ],
)
def test_a_row_that_is_no_prediction(text: str, error: str, tmp_path: Path) -> None:
    path = tmp_path / "predictions.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ", " + error):
        predictions.read(path)


def test_the_file_of_this_project() -> None:
    found = predictions.read(FILE)
    assert len({one[:3] for one in found}) == len(found), "one prediction of each part"
    pages = [path.read_text(encoding="utf-8") for path in FILE.parent.glob("*.md")]
    heads = [head for page in pages for head in re.findall(r"^## (.*)$", page, re.MULTILINE)]
    sections = {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}
    assert {one.section for one in found} <= sections
    # As the verbs print them; tests/bench/test_profile.py checks the parts of the first two.
    frame, step = "1x4x50x720x1280 bfloat16", "16x4x50x256x256 bfloat16"
    wholes = {f"lmfn infer {frame}", f"lmfn step {step}"}
    assert {one.of for one in found} <= {f"frame {frame}", f"step {step}", *wholes, "windows 1x720x1280 bfloat16"}
    assert {one.part for one in found if one.of in wholes} <= set(OURS)
