"""Every kernel of the network, compiled for every target without a GPU: no spills, enough memory, and use of matrix
units."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.resources import Compiled, serialized, waits


@pytest.mark.timeout(1300)
@pytest.mark.parametrize(
    ("target", "dtype"),
    [("sm_80", "float32"), ("sm_90", "bfloat16"), ("gfx942", "float32")],
)
def test_no_fault(environment: dict[str, str], target: str, dtype: str) -> None:
    """In a separate process: this one may use Triton's interpreter, and an LLVM assertion would end it.

    In float32, which needs the most registers, on the targets with the fewest; in bfloat16 where both assemblers and
    the descriptors of matrix instructions are checked. `python -m bench resources` covers every target and dtype.
    """
    done = subprocess.run(
        [sys.executable, "-m", "bench", "resources", "--target", target, "--dtype", dtype],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "with faults" in done.stdout.splitlines()[-1]


def test_a_fault_is_found() -> None:
    fine = {
        "target": "sm_90",
        "dtype": "bfloat16",
        "kernel": "k",
        "ptxas": "12.9",
        "tile": "8x16",
        "warps": 4,
        "registers": 200,
        "stack": 0,
    }
    fine |= {"local": 0, "shared": 100_000, "matrix": 8, "hgmma": 8, "products": True, "wide": True}
    assert Compiled(**fine).faults() == []  # type: ignore[arg-type]
    for field, value in (
        ("stack", 8),
        ("local", 1),
        ("shared", 240_000),
        ("matrix", 0),
        ("hgmma", 0),
        ("serialized", True),
        ("waits", False),
        ("descriptors", ("wrong",)),
    ):
        assert Compiled(**(fine | {field: value})).faults(), field  # type: ignore[arg-type]


def test_a_missing_wait_for_the_previous_launch_is_found() -> None:
    load, wait = "LDG.E.128 R4, desc[UR6][R2.64] ;", "ACQBULK ;"
    parameter = "LDC.64 R2, c[0x0][0x210] ; UTMACCTL.PF [UR4] ;"
    assert waits(f"{parameter}{wait}{load}")
    assert not waits(f"{load}{wait}")
    assert not waits(f"@!P0 UTMALDG.4D [UR8], [UR4] ;{wait}")
    assert waits(f"{load}{wait}", anywhere=True)
    assert not waits(load, anywhere=True)


def test_products_that_wait_for_each_other_are_found() -> None:
    ptx = "wgmma.mma_async.sync a;\nwgmma.mma_async.sync b;\nwgmma.commit_group.sync.aligned;"
    one, last = "HGMMA.64x64x16.F32.BF16 R24, R124, gdesc[UR16], R24", "gsb0 ;"
    assert serialized(ptx, f"{one}, {last}\n{one}, {last}")
    assert not serialized(ptx, f"{one} ;\n{one}, {last}")
    assert not serialized(ptx.partition("\n")[2], f"{one}, {last}"), "one product"
    assert not serialized("", "")
