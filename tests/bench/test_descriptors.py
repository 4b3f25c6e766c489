"""Miscompiled wgmma descriptors are found, and correct ones pass. `machine_code` contains `fuse_kernel` of version 0.1
without `t_d4`, bfloat16, for sm_90, as two versions of ptxas compiled it from the same PTX. On an H100 the kernel from
12.8 ended with an illegal memory access at its last product; that from 12.9 was correct."""

import lzma
from pathlib import Path

import pytest

from bench.descriptors import scan

MACHINE_CODE = Path(__file__).parent / "machine_code"


def _fuse_kernel(ptxas: str) -> str:
    return lzma.decompress((MACHINE_CODE / f"fuse_kernel-ptxas-{ptxas}.sass.xz").read_bytes()).decode()


def _program(*lines: str) -> str:
    """In the format of `nvdisasm -c`, with addresses and semicolons; labels end with a colon."""
    return "\n".join(line if line.endswith(":") else f"/*{16 * i:04x}*/ {line} ;" for i, line in enumerate(lines))


def test_what_ended_with_an_illegal_memory_access_is_found() -> None:
    """Three of the four descriptors of the last product, for both halves of its rows."""
    products, faults = scan(_fuse_kernel("12.8"))
    assert products == 32
    assert [fault.split(" of ")[0] for fault in faults] == [
        "4830: UR15",
        "4840: UR11",
        "4850: UR19",
        "4880: UR15",
        "4890: UR11",
        "48a0: UR19",
    ]


def test_what_was_right_passes() -> None:
    assert scan(_fuse_kernel("12.9")) == (32, [])


PRODUCT = "HGMMA.64x64x16.F32.BF16 R24, R40, gdesc[UR4].tnspB, R24, gsb0"
JUMP_TABLE = 'BRX R8 -0x1a0 (*"BRANCH_TARGETS .L_x_0,.L_x_1"*)'
BOTH_SHARED = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4].tnspB, R24, gsb0"
CONSTANT = "UMOV UR7, 0x40000040"
SWAP = [f"ULOP3.LUT UR{to}, UR7, UR6, URZ, 0x3c, !UPT" for to in (7, 6, 7)]


@pytest.mark.parametrize(
    "right",
    [
        [CONSTANT, PRODUCT],
        ["UMOV UR5, 0x40000040", CONSTANT, BOTH_SHARED],
        ["UMOV UR9, 0x40000040", "UMOV UR7, UR9", "UMOV UR9, 0x5", PRODUCT],
        ["UMOV UR9, URZ", "UMOV UR11, 0x40000040", "UIADD3.64 UR6, UR8, UR10, URZ", PRODUCT],
        ["UIADD3 UR6, UP0, UR8, 0x20, URZ", "UIADD3.X UR7, URZ, -0x3ffffff0, URZ, UP0, !UPT", PRODUCT],
        ["IMAD.MOV.U32 R3, RZ, RZ, 0x40000040", "IMAD.X R5, RZ, RZ, R3, P0", "R2UR UR7, R5", PRODUCT],
        ["IMAD.MOV.U32 R3, RZ, RZ, RZ", "IADD3.X R3, R3, 0x40000040, RZ, P0, !PT", "R2UR UR7, R3", PRODUCT],
        ["CS2R R2, SRZ", "IADD3.X R3, R3, 0x40000040, RZ, P0, !PT", "R2UR UR7, R3", PRODUCT],
        ["UMOV UR7, 0x40000000", "ULOP3.LUT UR7, UR7, 0x40, URZ, 0xfc, !UPT", PRODUCT],
        [CONSTANT, "MOV R5, 0x40000040", "@P1 R2UR UR7, R5", PRODUCT],
        [CONSTANT, "@P0 BRA `(.L_x_1)", "UMOV UR8, 0x1", ".L_x_1:", PRODUCT],
        [CONSTANT, ".L_x_1:", PRODUCT, "UIADD3 UR6, UR6, 0x2, URZ", "@P0 BRA `(.L_x_1)", "EXIT"],
        [CONSTANT, "BRA `(.L_x_1)", ".L_x_0:", "UMOV UR7, UR9", ".L_x_1:", PRODUCT, "EXIT"],
        [CONSTANT, JUMP_TABLE, ".L_x_0:", "EXIT", ".L_x_1:", PRODUCT, "EXIT"],
        ["BSSY B0, `(.L_x_1)", CONSTANT, "@P0 BRA `(.L_x_0)", ".L_x_0:", "BSYNC B0", ".L_x_1:", PRODUCT],
        [CONSTANT.replace("7", "6"), "R2UR UR7, R3", *SWAP, PRODUCT],
        [CONSTANT, *SWAP, *SWAP, PRODUCT],
    ],
)
def test_a_constant_passes(right: list[str]) -> None:
    assert scan(_program(*right)) == (1, [])


@pytest.mark.parametrize(
    "wrong",
    [
        [PRODUCT],
        [CONSTANT, BOTH_SHARED],
        ["UMOV UR7, 0x12345678", PRODUCT],
        [CONSTANT, "S2UR UR7, SR_CgaCtaId", PRODUCT],
        [CONSTANT, "@P1 R2UR UR7, R5", PRODUCT],
        [CONSTANT, "ULDC.64 UR6, c[0x0][0x208]", PRODUCT],
        ["IMAD.MOV.U32 R3, RZ, RZ, 0x40000040", "LDS.128 R0, [R8]", "R2UR UR7, R3", PRODUCT],
        ["IMAD.MOV.U32 R3, RZ, RZ, 0x40000040", "SHFL.IDX PT, R3, R3, RZ, 0x1f", "R2UR UR7, R3", PRODUCT],
        ["MOV R24, 0x40000040", CONSTANT, PRODUCT, "R2UR UR7, R24", PRODUCT],
        [CONSTANT, "UIADD3.X UR7, UR9, UR7, URZ, UP0, !UPT", PRODUCT],
        [CONSTANT, "@P0 BRA `(.L_x_1)", "UMOV UR7, UR9", ".L_x_1:", PRODUCT],
        [CONSTANT, ".L_x_1:", PRODUCT, "UMOV UR7, UR9", "@P0 BRA `(.L_x_1)", "EXIT"],
        ["BSSY B0, `(.L_x_1)", "@P0 BRA `(.L_x_0)", CONSTANT, ".L_x_0:", "BSYNC B0", ".L_x_1:", PRODUCT],
        ["CS2R R2, SR_CLOCKLO", "R2UR UR7, R3", PRODUCT],
        [JUMP_TABLE, ".L_x_0:", "UMOV UR7, UR9", "EXIT", ".L_x_1:", PRODUCT, "EXIT"],
        [CONSTANT, "CALL.REL.NOINC `($f)", PRODUCT],
        [CONSTANT, *SWAP, PRODUCT],
        [CONSTANT, SWAP[0], PRODUCT],
        [CONSTANT, *SWAP[:2], "UMOV UR6, UR9", SWAP[2], PRODUCT],
    ],
)
def test_what_may_be_no_constant_is_found(wrong: list[str]) -> None:
    _, faults = scan(_program(*wrong))
    assert len(faults) == 1


def test_a_product_that_no_jump_leads_to_is_an_error() -> None:
    with pytest.raises(ValueError, match="only 1 of 2 wgmma instructions"):
        scan(_program(CONSTANT, PRODUCT, "EXIT", ".L_x_0:", PRODUCT, "EXIT"))
