"""Every kernel of the network, compiled for every target without a GPU: no spills, enough memory, and use of matrix
units."""

import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from triton import knobs

import bench.resources as module
from bench.resources import Compiled, compiled, serialized, waits


@pytest.mark.timeout(1300)
@pytest.mark.parametrize(
    ("target", "dtype", "forms", "kernels"),
    [
        ("sm_90", "bfloat16", "usual", []),
        ("sm_80", "float32", "largest", []),
        ("sm_100", "float16", "largest", ["conv"]),
        ("sm_100", "float32", "largest", ["upsampled_conv", "upsampled_conv_input_gradient"]),
        ("gfx942", "float32", "largest", []),
    ],
)
def test_no_fault(environment: dict[str, str], target: str, dtype: str, forms: str, kernels: list[str]) -> None:
    """In a separate process: this one may use Triton's interpreter, and an LLVM assertion would end it.

    In float32, which needs the most registers, on the targets with the fewest; in bfloat16 where both assemblers and
    the descriptors of matrix instructions are checked; on sm_100, the kernels that have other tiles than on sm_90. What
    is used by default on sm_90 is compiled in all its forms, everything else in the largest, which are the first to
    need too much. `python -m bench resources` covers all forms for every target and dtype.
    """
    only = ["--kernel", *kernels] if kernels else []
    done = resources(environment, "--target", target, "--dtype", dtype, "--forms", forms, *only)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "with faults" in done.stdout.splitlines()[-1]
    if (target, dtype) == ("sm_90", "bfloat16"):
        assert_documented(done.stdout)


def assert_documented(printed: str) -> None:
    """The tables of resources in docs/, which are of ptxas 12.9."""
    columns = r"(\d+x\d+) +(\d+) +(\d+) +0 +0 +(\d+) +(\d+) +(\d+)"
    found = {(row[7], *row.groups()[:6]) for row in re.finditer(rf" 12\.9  {columns}  (.+)", printed)}
    cells = r"`(.+?)` \| (\d+x\d+) \| (\d+) \| (\d+) \| ([\d,]+) \| (\d+) \| (\d+) \|$"
    pages = (Path(__file__).parents[2] / "docs").glob("*.md")
    rows = [row for page in pages for row in re.findall(rf"^\| .+ \| {cells}", page.read_text(), re.MULTILINE)]
    assert len(rows) > 30
    assert {tuple(cell.replace(",", "") if cell[0].isdigit() else cell for cell in row) for row in rows} <= found


def test_a_kernel_that_there_is_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs.runtime, "interpret", False)  # nothing is compiled here
    with pytest.raises(ValueError, match="no kernel for sm_80 in float32 is named pat"):
        list(compiled("sm_80", "float32", ["pat"]))


def test_the_largest_forms_are_those_with_most_tensors_of_each_body() -> None:
    kernel, x = mock.Mock(__name__="conv_kernel"), torch.zeros(1)
    kernel.warmup = lambda **arguments: mock.Mock(hash=repr(arguments))
    compiler = module._Compiler(module.TARGETS["sm_80"], None)
    same, back, wide = {"MODE": "same"}, {"MODE": "back"}, {"MODE": "same", "BLOCK_W": 32}
    largest = [same | {"t_residual": x}, back | {"t_mask": x}, back | {"t_residual": x}, wide]
    for call in (compiler.note, compiler.launch):
        for form in (same, *largest, same | {"p_other": x, "p_more": x}):
            call(None, kernel, (1,), {"num_warps": 4, "p_x": x, "t_residual": None, **form})
    chosen = [{"num_warps": 4, "p_x": x, "t_residual": None, **form} for form in largest]
    assert [arguments for _, _, arguments in compiler.compiled.values()] == chosen


def resources(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", "resources", *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(__file__).parents[2],
        timeout=1200,
    )


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
    load, wait, end = "LDG.E.128 R4, desc[UR6][R2.64] ;", "ACQBULK ;", "EXIT ;"
    parameter, prefetch = "LDC.64 R2, c[0x0][0x210] ;", "UTMACCTL.PF [UR4] ;"
    weight, pixels = "@UP0 UTMALDG.3D [UR8], [UR4] ;", "@!UP0 UTMALDG.4D [UR8], [UR4] ;"
    assert waits(code(parameter, prefetch, wait, load, end))
    assert not waits(code(load, wait, end))
    assert not waits(code(pixels, wait, end))
    assert not waits(code(weight, wait, end))
    assert not waits(code(parameter, end)), "it never waits"
    assert waits(code(weight, wait, pixels, end), ahead=True)
    assert not waits(code(weight, pixels, wait, end), ahead=True)
    assert not waits(code(load, wait, end), ahead=True)


def test_each_warp_must_wait() -> None:
    load, wait, end = "LDG.E.128 R4, desc[UR6][R2.64] ;", "ACQBULK ;", "EXIT ;"
    jump, table = "@!P0 BRA `(.L_1) ;", 'BRX R6 -0x170 (*"BRANCH_TARGETS .L_1,.L_2"*) ;'
    one, other = (".L_1:", wait, load, end), (".L_2:", wait, load, end)
    assert waits(code(table, *one, *other))
    assert waits(code(jump, wait, load, end, *one))
    assert not waits(code(table, *one, ".L_2:", load, wait, end))
    assert not waits(code(jump, load, wait, end, *one))
    assert not waits(code(jump, wait, load, end, ".L_1:", load, end))
    assert not waits(code("BRA `(.L_2) ;", *one, ".L_2:", load, end)), "the wait is passed by"
    assert not waits(code("@P0 ACQBULK ;", load, end)), "not all of its threads wait"
    assert waits(code(".L_1:", "NOP ;", jump, wait, load, end)), "a loop before the wait"


def code(*lines: str) -> str:
    """As nvdisasm prints it."""
    return "\n".join(line if line.startswith(".") else f"/*{16 * i:04x}*/    {line}" for i, line in enumerate(lines))


def test_products_that_wait_for_each_other_are_found() -> None:
    ptx = "wgmma.mma_async.sync a;\nwgmma.mma_async.sync b;\nwgmma.commit_group.sync.aligned;"
    one, last = "HGMMA.64x64x16.F32.BF16 R24, R124, gdesc[UR16], R24", "gsb0 ;"
    assert serialized(ptx, f"{one}, {last}\n{one}, {last}")
    assert not serialized(ptx, f"{one} ;\n{one}, {last}")
    assert not serialized(ptx.partition("\n")[2], f"{one}, {last}"), "one product"
    assert not serialized("", "")
