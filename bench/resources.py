"""What every shipped kernel needs on every target, compiled without a GPU: `python -m bench resources`.

The ops are called as ever, on small CPU tensors, with a compiler in place of the launch. So the table holds what a
launch would compile, argument specialisation included, and cannot fall behind the launchers.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from lmfn_kernels.acfm import op as acfm
from lmfn_kernels.alfm import op as alfm
from lmfn_kernels.conv.op import _conv3x3
from lmfn_kernels.mshf.op import _residual_block, _stem
from lmfn_kernels.rfdb import op
from lmfn_kernels.runtime import configs, launch
from lmfn_kernels.runtime.registration_by_offset import Op
from lmfn_kernels.upsample.op import _upsample_add, _upsampled_conv3x3

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
"""Bytes of shared memory that one program can have on each target."""
MATRIX = {
    "sm_80": r"\bHMMA\.",
    "sm_90": r"\b(?:HGMMA|HMMA)\.",
    "sm_100": r"\b(?:UTC\w*MMA|HMMA)\b",
    "gfx942": r"v_mfma_",
}


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled for one target."""

    target: str
    dtype: str
    kernel: str
    """Name, with what sets this variant apart."""
    tile: str
    warps: int
    registers: int
    stack: int
    """Bytes: of the stack on NVIDIA, of scratch on AMD."""
    local: int
    """Loads and stores of spilt registers."""
    shared: int
    matrix: int
    hgmma: int
    products: bool
    """Whether the kernel has matrix products."""
    wide: bool
    """Whether one has 64 rows or more of 16 bits, so that sm_90 must use HGMMA."""

    def faults(self) -> list[str]:
        """What does not hold."""
        limit = SHARED[self.target]
        found = {
            f"stack {self.stack} bytes": self.stack > 0,
            f"{self.local} local loads and stores": self.local > 0,
            f"shared memory {self.shared} bytes of {limit}": self.shared > limit,
            "no matrix instruction": self.products and self.matrix == 0,
            "no HGMMA": self.target == "sm_90" and self.wide and self.hgmma == 0,
        }
        return [fault for fault, holds in found.items() if holds]


class _Compiler:
    """In the place of a GPU's driver, and of the launch."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target
        self.compiled: dict[str, tuple[Any, Any, dict[str, Any]]] = {}

    def get_current_device(self) -> str:
        return str(self.target)

    def get_current_stream(self, _device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def launch(self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        made = kernel.warmup(grid=grid, **arguments)
        self.compiled.setdefault(made.hash, (kernel, made, arguments))


def _calls(dtype: torch.dtype) -> None:
    """Every op, forward and backward, with the network's widths; forward without a backward differs in its launches."""

    def image(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    b, c, d, f, h, w = 2, 50, 25, 12, 34, 50
    convs = [(d, c, 1)] * 3 + [(c, c, 3)] * 3 + [(d, c, 3), (c, 4 * d, 1), (f, c, 1), (f, f, 1)] + [(f, f, 3)] * 4
    flat = [t for n, k, size in [*convs, (c, f, 1)] for t in (image(n, k, size, size), image(n))]
    block = [image(b, c, h, w), *flat]
    results = op._rfdb.forward("triton", block, [0.05], True)
    op._rfdb.backward("triton", results[:1], results[1:], block, [0.05], [True] * len(block))
    stage = [image(b, c, h, w), image(d, c, 1, 1), image(d), image(c, c, 3, 3), image(c)]
    results = op._distill_stage.forward("triton", stage, [0.05], True)
    op._distill_stage.backward("triton", results, results, stage, [0.05], [True] * 5)
    fuse = [image(b, n, h, w) for n in (c, d, d, d)] + [image(d, c, 3, 3), image(d), image(c, 4 * d, 1, 1), image(c)]
    fuse += [image(f, c, 1, 1), image(f)]
    results = op._distill_fuse.forward("triton", fuse, [0.05], True)
    op._distill_fuse.backward("triton", results[:2], results[2:], fuse, [0.05], [True] * 10)
    for n, stride, slope in ((c, 1, 0.0), (64, 1, 0.0), (64, 2, 0.1)):
        low = [(size - 1) // stride + 1 for size in (h, w)]
        residual = image(b, n, *low) if stride == 1 else None
        tensors = [image(b, n, h, w), image(n, n, 3, 3), image(n), residual]
        results = _conv3x3.forward("triton", tensors, [stride, 1, slope], True)
        needs = [t is not None for t in tensors]
        _conv3x3.backward("triton", results, results, tensors, [stride, 1, slope], needs)
    _attentions(dtype)
    _encoder_and_head(dtype)


def _encoder_and_head(dtype: torch.dtype) -> None:
    """Forward and backward of the network's encoder and head."""

    def image(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    b, c, h, w = 2, 50, 34, 50
    calls: list[tuple[Op, list[torch.Tensor], list[float]]] = [
        (_stem, [image(b, 3, h, w), image(64, 3, 3, 3), image(64), image(64, 64, 3, 3), image(64)], [1, 0.1]),
        (_upsample_add, [image(b, 64, h, w), image(b, 64, h // 2, w // 2)], []),
        (_upsampled_conv3x3, [image(b, c, h, w), image(3, c, 3, 3), image(3)], []),
    ]
    for n, upsample in ((c, True), (64, False)):
        weights = [image(n, n, 3, 3), image(n), image(n, n, 3, 3), image(n)]
        calls.append((_residual_block, [image(b, n, h, w), *weights], [upsample, True]))
    for called, tensors, options in calls:
        results = called.forward("triton", tensors, options, True)
        kept = results if called.keeps_results(options) else results[1:]
        called.backward("triton", results[:1], kept, tensors, options, [True] * len(tensors))


def _attentions(dtype: torch.dtype) -> None:
    def image(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    b, n, c, h, w = 2, 4, 50, 34, 50
    maps, fusion = [image(b, c, h, w) for _ in range(n)], (image(1), image(c, n * c, 1, 1), image(c))
    for temperature in (None, image(1)):
        attention = alfm.AttentionInputs(maps, None, *fusion, temperature)
        options = alfm.AttentionOptions(by_layer=False, slope=0.05)
        _both_passes(alfm.LAYER_ATTENTION, attention, options)
    for weights in (([9], [1], [3], [1]), ([27], [1])):
        gate = [image(*shape) for shape in weights]
        _both_passes(
            acfm.CHANNEL_GATE, acfm.GateInputs(image(b, c, h, w), image(b, c, h, w), image(1), gate), acfm.GateOptions()
        )
        merge = acfm.MergeInputs(maps, image(b, c, h, w), image(1), gate, *fusion, image(1))
        _both_passes(acfm.ATTENTION_MERGE, merge, acfm.MergeOptions(-1, by_layer=False, slope=0.05))


def _both_passes(op: Any, inputs: Any, options: Any) -> None:
    """Forward with and without a backward pass, which differ in what they launch, and backward."""
    op.forward("triton", inputs, options, False)
    results = op.forward("triton", inputs, options, True)
    n = len(op.outputs)
    needs = [t is not None for value in inputs for t in (value if isinstance(value, list) else [value])]
    op.backward("triton", results[:n], results if op.saves_outputs(options) else results[n:], inputs, options, needs)


def compiled(target: str, dtype: str) -> Iterator[Compiled]:
    """The rows of one target and dtype."""
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set, so nothing would be compiled; unset it")
    gpu, shared = TARGETS[target], SHARED[target]
    compiler = _Compiler(gpu)
    with ExitStack() as stack:
        # Not set_active and reset_active: the second looks for a GPU's driver, and there may be none to go back to.
        stack.enter_context(mock.patch.object(driver, "_active", compiler))
        stack.enter_context(mock.patch.object(configs, "describe", return_value=(target, shared)))
        stack.enter_context(mock.patch.object(launch, "launcher", compiler.launch))
        _calls(DTYPES[dtype])
        for kernel, made, arguments in compiler.compiled.values():
            yield _row(target, dtype, kernel, made, arguments)


def _row(target: str, dtype: str, kernel: Any, made: Any, a: dict[str, Any]) -> Compiled:
    source = kernel.src
    numbers = _nvidia(made) if target != "gfx942" else _amd(made)
    instructions = numbers.pop("instructions")
    name = kernel.__name__.removesuffix("_kernel")
    products = "tl.dot" in source
    rows = a["BLOCK_K"] if name == "weight_gradient" else a.get("BLOCK_H", 0) * a.get("BLOCK_W", 1)
    return Compiled(
        target=target,
        dtype=dtype,
        kernel=f"{name}{_variant(a)}",
        tile=f"{a.get('BLOCK_H', 1)}x{a.get('BLOCK_W', 1)}",
        warps=a["num_warps"],
        shared=made.metadata.shared,
        matrix=len(re.findall(MATRIX[target], instructions)),
        hgmma=len(re.findall(r"\bHGMMA\.", instructions)),
        products=products,
        wide=products and rows >= 64 and DTYPES[dtype].itemsize == 2,
        **numbers,
    )


def _variant(a: dict[str, Any]) -> str:
    parts = [str(a["MODE"])] if "MODE" in a else []
    parts += [f"{a['K']}-{a['N']}"] if "K" in a else []
    parts += [f"{a['TAPS']}x{a['TAPS']}"] if "TAPS" in a else []
    parts += ["down"] if a.get("STRIDE") == 2 else []
    parts += [f"{name.lower()}={a[name]}" for name in ("ROW", "ODD_H", "ODD_W", "FIRST", "SLOPE") if a.get(name)]
    parts += [name for name in ("t_by", "t_residual", "t_z", "t_mask", "t_d", "t_d4") if a.get(name) is not None]
    return f" ({', '.join(parts)})" if parts else ""


def _nvidia(made: Any) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = _output(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
        assembly = _output(knobs.nvidia.nvdisasm.path, "-c", file.name)
    found = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    return {
        "registers": int(found["REG"]),
        "stack": int(found["STACK"]),
        "local": len(re.findall(r"\b(?:LDL|STL)\b", assembly)),
        "instructions": assembly,
    }


def _amd(made: Any) -> dict[str, Any]:
    assembly = made.asm["amdgcn"]
    found = dict(
        re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size):\s+(\d+)", assembly)
    )
    return {
        "registers": int(found["vgpr_count"]),
        "stack": int(found["private_segment_fixed_size"]),
        "local": int(found["vgpr_spill_count"]),
        "instructions": assembly,
    }


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def table(targets: list[str], dtypes: list[str]) -> int:
    """Print the rows, and as the last line a summary. Gives the number of rows with a fault."""
    print(f"triton {triton.__version__}")
    print(f"{'target':7} {'dtype':8} {'tile':5} warps  regs stack local  shared matrix hgmma  kernel")
    rows = []
    for target in targets:
        for dtype in dtypes:
            for row in compiled(target, dtype):
                rows.append(row)
                faults = "; ".join(row.faults())
                print(
                    f"{row.target:7} {row.dtype:8} {row.tile:5} {row.warps:5} {row.registers:5} {row.stack:5} "
                    f"{row.local:5} {row.shared:7} {row.matrix:6} {row.hgmma:5}  {row.kernel}"
                    + (f"  FAULT: {faults}" if faults else ""),
                    flush=True,
                )
    bad = sum(bool(row.faults()) for row in rows)
    worst = max(row.registers for row in rows)
    print(
        f"{len(rows)} kernels on {', '.join(targets)} in {', '.join(dtypes)}: {bad} with faults, most registers {worst}"
    )
    return bad
