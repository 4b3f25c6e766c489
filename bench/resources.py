"""Resources of every kernel on every target, compiled without a GPU: `python -m bench resources`.

The ops are called as usual, on small CPU tensors, with a compiler in place of the launch. The table therefore contains
exactly the kernels that launches would compile, specialised in the same way. A kernel in Triton for sm_90 has two rows,
one for each ptxas in Triton's wheel, since the driver determines which of them is used (`runtime/assembler.py`). One in
Gluon has one row: only Triton 3.6 runs it, and every driver that takes its older ptxas takes the newer one.
"""

import argparse
import re
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton
from triton import knobs

from bench.descriptors import ENDS, blocks_of, scan
from bench.disassembly import disassemble, output
from lmfn_kernels.acfm import op as acfm
from lmfn_kernels.alfm import op as alfm
from lmfn_kernels.conv import op as convolution
from lmfn_kernels.conv import triton_backend as convolutions
from lmfn_kernels.conv.scaled import scaled
from lmfn_kernels.mshf import op as mshf
from lmfn_kernels.rfdb import op as rfdb
from lmfn_kernels.rfdb import triton_backend as blocks
from lmfn_kernels.runtime import configs, launch, trials
from lmfn_kernels.runtime.assembler import assembler
from lmfn_kernels.runtime.overlap import can_overlap
from lmfn_kernels.runtime.registration import NoOptions, Op
from lmfn_kernels.runtime.schema import to_arguments, to_tensors
from lmfn_kernels.runtime.triton_private import GPUTarget, driver
from lmfn_kernels.upsample import op as upsample
from lmfn_kernels.weights import E4M3, Conv

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_86": GPUTarget("cuda", 86, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SHARED = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
}
"""Bytes of shared memory available to one program on each target."""
MATRIX = {
    "sm_90": r"\b(?:[HQ]GMMA|HMMA)\.",
    "sm_100": r"\b(?:UTC\w*MMA|HMMA)\b",
    "gfx942": r"v_mfma_",
}
"""Patterns of matrix instructions; on the other targets only HMMA counts."""
OPTIONAL = (
    *("t_act", "t_g2", "t_g3", "t_residual", "t_z", "t_mask", "t_d", "t_d4", "t_add", "t_added"),
    *("p_add", "p_residual", "p_more_g", "p_index", "p_low1", "p_temperature"),
)
"""Arguments of kernels that may be None; those that are not are part of a row's name."""
MEMORY = r"\b(?:LDG|STG|LD|ST|LDGSTS|ATOM|ATOMG|RED|REDG|UTMA(?!CCTL)\w+|UBLK\w+)\b"
"""A pattern of NVIDIA's instructions that read or write an image, and of no other."""

FORMS = {
    "all": "all forms of a kernel",
    "usual": "all that are launched by default, and otherwise the largest",
    "largest": "those that take the most tensors",
}
"""Which forms of a kernel are compiled."""

Assembled = tuple[str, str, dict[str, int]]
"""The version of ptxas, the machine code, and the registers, stack and local accesses that it uses."""


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled for one target."""

    target: str
    dtype: str
    kernel: str
    """Its name, and the arguments that distinguish this variant."""
    ptxas: str
    """The version of ptxas; empty on AMD, where LLVM assembles."""
    tile: str
    warps: int
    registers: int
    stack: int
    """Bytes of stack on NVIDIA, of scratch memory on AMD."""
    local: int
    """Number of instructions that load or store spilled registers."""
    shared: int
    matrix: int
    hgmma: int
    """Number of `wgmma`: HGMMA, or QGMMA of 8 bits."""
    products: bool
    """Whether the kernel has matrix products."""
    wide: bool
    """Whether a matrix product has at least 64 rows and 16-bit values for four warps or more, so that sm_90 must use
    HGMMA."""
    serialized: bool = False
    """Whether each `wgmma` waits for the one before: what ptxas does, without an error, where registers are short or it
    cannot tell which of them are free."""
    waits: bool = True
    """Whether it waits for the launch before it, where launches may overlap."""
    descriptors: tuple[str, ...] = ()
    """Faults of wgmma descriptors (`bench/descriptors.py`)."""

    def faults(self) -> list[str]:
        """The requirements that the kernel does not meet."""
        limit = SHARED[self.target]
        found = {
            f"stack {self.stack} bytes": self.stack > 0,
            f"{self.local} local loads and stores": self.local > 0,
            f"shared memory {self.shared} bytes of {limit}": self.shared > limit,
            "no matrix instruction": self.products and self.matrix == 0,
            "no HGMMA": self.target == "sm_90" and self.wide and self.hgmma == 0,
            "serialized HGMMA": self.serialized,
            "no wait for the previous launch": not self.waits,
        }
        return [fault for fault, holds in found.items() if holds] + list(self.descriptors)


class _Compiler:
    """Replacement for a GPU driver and for the launch."""

    def __init__(self, target: GPUTarget, names: Collection[str] | None) -> None:
        self.target, self.names = target, names
        self.compiled: dict[str, tuple[Any, Any, dict[str, Any]]] = {}
        self.largest: dict[tuple[Any, ...], tuple[int, int]] = {}
        """Sizes of the largest forms of each kernel; while there are none, all forms are compiled."""

    def get_current_device(self) -> str:
        return str(self.target)

    def get_current_stream(self, _device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def launch(self, _launch: Any, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        if self.names is not None and _name(kernel) not in self.names:
            return
        if _size(arguments) >= self.largest.get(_body(kernel, arguments), (0, 0)):
            made = kernel.warmup(grid=grid, **arguments)
            self.compiled.setdefault(made.hash, (kernel, made, arguments))

    def note(self, _launch: Any, kernel: Any, _grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        body = _body(kernel, arguments)
        self.largest[body] = max(self.largest.get(body, (0, 0)), _size(arguments))


def _calls(dtype: torch.dtype, *, training: bool) -> None:
    """Every op at the network's widths: inference and, unless told not to, forward and backward in training."""

    run = _all_passes if training else _inference

    def image(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    def conv(n: int, k: int, size: int) -> Conv:
        return Conv(image(n, k, size, size), image(n))

    b, c, d, f = 2, 50, 25, 12
    distil, refine, last = conv(d, c, 1), conv(c, c, 3), conv(d, c, 3)
    fuse, squeeze, skip, expand, low = conv(c, 4 * d, 1), conv(f, c, 1), conv(f, f, 1), conv(c, f, 1), conv(f, f, 3)
    # Convolutions of large images have larger tiles; those of 42 columns have, with 8 programs, `ring.TILES[1]`.
    for h, w in ((130, 130), (34, 42)):
        x = image(b, c, h, w)
        block = rfdb.Inputs(x, (distil,) * 3, (refine,) * 3, last, fuse, squeeze, skip, low, low, low, low, expand)
        run(rfdb.RFDB, block, rfdb.BlockOptions(0.05, fixed_grid=False))
        run(rfdb.DISTILL_STAGE, rfdb.StageInputs(x, distil, refine), rfdb.Options(0.05))
        block_up = mshf.OneBlock((x,), (refine,), (refine,))
        run(mshf.RESIDUAL_BLOCKS[1], block_up, mshf.BlockOptions(True, save_middle=True))
    d1, d2, d3 = (image(b, d, h, w) for _ in range(3))
    run(rfdb.DISTILL_FUSE, rfdb.FuseInputs(x, d1, d2, d3, last, fuse, squeeze), rfdb.Options(0.05))
    for n, stride, slope in ((c, 1, 0.0), (64, 1, 0.0), (64, 2, 0.1)):
        residual = image(b, n, h, w) if stride == 1 else None
        run(
            convolution.CONV3X3,
            convolution.Inputs(image(b, n, h, w), *conv(n, n, 3), residual),
            convolution.Options(stride, 1, slope),
        )
    # The attentions.
    maps, fusion = [image(b, c, h, w) for _ in range(4)], (image(1), image(c, 4 * c, 1, 1), image(c))
    # Windows need a GPU with enough shared memory (`holds_windows` in `lmfn_kernels/alfm/op.py`).
    sides = (0, 16) if configs.describe(torch.device("cpu")).shared >= 200_000 else (0,)
    for temperature in (None, image(1)):
        attention = alfm.AttentionInputs(maps, None, *fusion, temperature)
        for side in sides:
            options = alfm.AttentionOptions(by_layer=False, slope=0.05, side=side)
            run(alfm.LAYER_ATTENTION, attention, options)
    for shapes in (([9], [1], [3], [1]), ([27], [1])):
        gate = [image(*shape) for shape in shapes]
        run(acfm.CHANNEL_GATE, acfm.GateInputs(x, image(b, c, h, w), image(1), gate), NoOptions())
        merge = acfm.MergeInputs(maps, x, image(1), gate, *fusion, image(1))
        for side in sides:
            run(acfm.ATTENTION_MERGE, merge, acfm.MergeOptions(-1, by_layer=False, slope=0.05, side=side))
    # The encoder and the head.
    run(
        mshf.STEM,
        mshf.StemInputs(image(0), torch.zeros(b, 3, h, w), image(3), conv(64, 3, 3), conv(64, 64, 3)),
        mshf.StemOptions(1, 0.1),
    )
    for n, up in ((c, True), (64, False)):
        residual_block = mshf.OneBlock((image(b, n, h, w),), (conv(n, n, 3),), (conv(n, n, 3),))
        run(mshf.RESIDUAL_BLOCKS[1], residual_block, mshf.BlockOptions(up, save_middle=True))
    for number in (2, 3):
        scales = tuple(image(b, 64, h // 2**i, w // 2**i) for i in range(number))
        op, convs = mshf.RESIDUAL_BLOCKS[number], tuple(conv(64, 64, 3) for _ in scales)
        run(op, op.inputs(scales, convs, convs), mshf.BlockOptions(False, save_middle=True))
    added = upsample.AddInputs(image(b, 64, h, w), image(b, 64, h // 2, w // 2))
    run(upsample.UPSAMPLE_ADD, added, NoOptions())
    residual = torch.zeros(b, 3, 2 * h, 2 * w)
    upsampled_conv = upsample.ConvInputs(x, conv(3, c, 3), residual, None)
    run(upsample.UPSAMPLED_CONV3X3, upsampled_conv, NoOptions())


def _calls_of_e4m3() -> None:
    """`ring_kernel` as in an inference that stores some maps as e4m3."""
    wide, size = torch.bfloat16, (2, 50, 34, 50)
    x, hidden = (launch.empty_image(torch.empty(0), *size, dtype=dtype) for dtype in (wide, E4M3))
    distil, refine = (Conv(torch.zeros(n, 50, k, k), torch.zeros(n)) for n, k in ((25, 1), (50, 3)))
    convolutions.scaled_conv(x, scaled(refine, wide), None, slope=0.0, dtype=E4M3)
    convolutions.scaled_conv(hidden, scaled(refine, wide, 1.0), x, slope=1.0, dtype=wide)
    for image, of, dtype in ((x, None, E4M3), (hidden, 1.0, E4M3), (hidden, 1.0, wide)):
        convs = scaled(distil, wide, of), scaled(refine, wide, of, residual=True)
        blocks.scaled_stage(image, *convs, 0.05, dtype, wide)


def _inference(op: Op[Any, Any, Any], inputs: Any, options: Any) -> None:
    """Forward without a backward pass."""
    op.forward("triton", to_arguments(inputs), options, False)


def _all_passes(op: Op[Any, Any, Any], inputs: Any, options: Any) -> None:
    """Forward without and with a backward pass, which launch different kernels, and backward."""
    _inference(op, inputs, options)
    arguments = to_arguments(inputs)
    results = op.forward("triton", arguments, options, True)
    n = len(op.outputs)
    needs = [t is not None for t in to_tensors(arguments)]
    saved = results if op.saves_outputs(options) else results[n:]
    again = {"": [], "output": [results[0]], "input": [to_tensors(arguments)[0]]}[op.second_use]
    for second in ([None], again) if again else ([],):
        op.backward("triton", [*results[:n], *second], saved, arguments, options, needs)


class _Way(NamedTuple):
    """How the ops are called."""

    programs: int
    """Of the kernels in Gluon; 0 for what is used in their place with other releases of Triton."""
    tried: Collection[str]
    """Names in `trials.ON_TRIAL`."""
    constant: bool = False
    """Whether weights are constant, as in inference."""


def compiled(target: str, dtype: str, names: Collection[str] | None = None, forms: str = "all") -> Iterator[Compiled]:
    """The rows of one target and dtype, of the kernels with these names, or of all, in these `FORMS`.

    Raises ValueError if no kernel has one of the names.
    """
    if knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set, so nothing would be compiled; unset it")
    gpu = TARGETS[target]
    device = configs.Device(target, gpu.arch if gpu.backend == "cuda" else 0, SHARED[target])
    compiler = _Compiler(gpu, names)
    with ExitStack() as stack:
        # Not set_active and reset_active: the second looks for a GPU driver, which may not exist.
        stack.enter_context(mock.patch.object(driver, "_active", compiler))
        stack.enter_context(mock.patch.object(configs, "describe", return_value=device))
        stack.enter_context(trials.trying(*trials.ON_TRIAL))
        ways = [_Way(0, trials.ON_TRIAL)]
        if target == "sm_90" and convolutions.has_ring():
            # With the kernels in Gluon, too: as by default (but for the wait in each, which overlapping launches need),
            # with all that is on trial, and in inference with weights loaded ahead.
            ways = [_Way(8, {"overlap"}), *ways, _Way(8, trials.ON_TRIAL), _Way(8, trials.ON_TRIAL, constant=True)]
        whole = {"all": ways, "usual": ways[:1], "largest": []}[forms]
        others = ways[len(whole) :]
        _call(whole, dtype, compiler.launch)
        _call(others, dtype, compiler.note)
        _call(others, dtype, compiler.launch)
        kernels = list(compiler.compiled.values())
        missing = set(names or ()) - {_name(kernel) for kernel, _, _ in kernels}
        if missing:
            raise ValueError(f"no kernel for {target} in {dtype} is named {' or '.join(sorted(missing))}")
        assembled = (_amd if target == "gfx942" else _nvidia)([made for _, made, _ in kernels])
        for (kernel, made, arguments), versions in zip(kernels, assembled, strict=True):
            yield from _rows(target, dtype, kernel, made, arguments, versions)


def _call(ways: list[_Way], dtype: str, in_place_of_launches: Callable[..., None]) -> None:
    for way in ways:
        with (
            launch.intercepting(in_place_of_launches),
            mock.patch.object(launch, "is_constant", return_value=way.constant),
            mock.patch.object(convolutions, "ring_programs", return_value=way.programs),
            trials.trying(*way.tried),
        ):
            _calls(DTYPES[dtype], training=not way.constant)
            # With all that is on trial, the weights of an inference, which are constant, are loaded ahead.
            if way.programs and dtype == "bfloat16" and (way.constant or way.tried != trials.ON_TRIAL):
                _calls_of_e4m3()


def _rows(
    target: str, dtype: str, kernel: Any, made: Any, a: dict[str, Any], versions: list[Assembled]
) -> Iterator[Compiled]:
    name = _name(kernel)
    products = "tl.dot" in kernel.src or kernel.is_gluon()
    rows = a["BLOCK_K"] if name == "weight_gradient" else a.get("BLOCK_H", 0) * a.get("BLOCK_W", 1)
    for ptxas, code, numbers in versions:
        yield Compiled(
            target=target,
            dtype=dtype,
            kernel=f"{name}{_variant(a)}",
            ptxas=ptxas,
            tile=f"{a.get('BLOCK_H', 1)}x{a.get('BLOCK_W', 1)}",
            warps=a["num_warps"],
            shared=made.metadata.shared,
            matrix=len(re.findall(MATRIX.get(target, r"\bHMMA\."), code)),
            hgmma=len(re.findall(r"\b[HQ]GMMA\.", code)),
            products=products,
            serialized=serialized(made.asm.get("ptx", ""), code),
            wide=products and rows >= 64 and a["num_warps"] >= 4 and DTYPES[dtype].itemsize == 2,
            waits=not can_overlap() or waits(code, ahead=a.get("AHEAD", False)),
            descriptors=tuple(scan(code)[1]) if target == "sm_90" else (),
            **numbers,
        )


def serialized(ptx: str, code: str) -> bool:
    """A group of `wgmma` ends in one with gsb0; here each is a group of its own, although in PTX some are not."""
    products = re.findall(r"\b[HQ]GMMA\..*", code)
    grouped = ptx.count("wgmma.mma_async") > ptx.count("wgmma.commit_group")
    return bool(products) and grouped and all("gsb0" in product for product in products)


def waits(code: str, *, ahead: bool = False) -> bool:
    """Whether every warp waits for the previous launch before it touches memory, on all paths through a kernel.

    With `ahead`, it may load weights before, which are the only arrays of three dimensions that TMA loads.
    """
    blocks = blocks_of(code)
    places = {block.label: place for place, block in enumerate(blocks)}
    seen, todo, waited = {0}, [0], False
    while todo:
        place = todo.pop()
        following = set()
        for instruction in blocks[place].instructions:
            if instruction.op == "ACQBULK" and not instruction.conditional:
                waited = True
                break
            if re.match(MEMORY, instruction.op) and not (ahead and instruction.op.startswith("UTMALDG.3D")):
                return False
            following |= {places[target] for target in instruction.targets}
            if instruction.op.split(".")[0] in ENDS and not instruction.conditional:
                break
        else:
            following |= {place + 1} & {*places.values()}
        todo += following - seen
        seen |= following
    return waited


def _name(kernel: Any) -> str:
    name: str = kernel.__name__
    return name.removesuffix("_kernel")


def _size(a: dict[str, Any]) -> tuple[int, int]:
    """Of a form of a kernel: how many optional tensors it takes, and how many tensors."""
    tensors = [name for name, value in a.items() if isinstance(value, torch.Tensor) or hasattr(value, "base")]
    return len({*OPTIONAL} & {*tensors}), len(tensors)


def _body(kernel: Any, a: dict[str, Any]) -> tuple[Any, ...]:
    """What forms of a kernel share that differ in the tensors that they take."""
    constants = ("MODE", "TAPS", "STRIDE", "WINDOWED", "BLOCK_H", "BLOCK_W", "ORDERED", "AHEAD")
    maps = bool(a.get("B2")), bool(a.get("B3")), *_dtypes(a)
    return kernel.__name__, a["num_warps"], *(a.get(name) for name in constants), *maps


def _dtypes(a: dict[str, Any]) -> list[torch.dtype]:
    """Of the map that a kernel reads and of the one that it writes, where it does by descriptors."""
    return [a[name].base.dtype for name in ("t_x", "t_out") if hasattr(a.get(name), "base")]


def _variant(a: dict[str, Any]) -> str:
    parts = [str(a["MODE"])] if "MODE" in a else []
    parts += ["-".join(str(a[name]) for name in ("K", "N") if name in a)] if "K" in a else []
    parts += [f"{a['TAPS']}x{a['TAPS']}"] if "TAPS" in a else []
    parts += ["down"] if a.get("STRIDE") == 2 else []
    parts += [f"slope={a['SLOPE']}"] if a.get("SLOPE") else []
    parts += [name for name in OPTIONAL if a.get(name) is not None]
    if E4M3 in _dtypes(a):
        parts.append(f"{' to '.join('8' if dtype == E4M3 else '16' for dtype in _dtypes(a))} bits")
    parts += ["three maps"] if a.get("B3") else ["two maps"] if a.get("B2") else []
    parts += ["in turns"] if a.get("ORDERED") else []
    parts += ["weights ahead"] if a.get("AHEAD") else []
    return f" ({', '.join(parts)})" if parts else ""


def _nvidia(kernels: list[Any]) -> list[list[Assembled]]:
    cubins = [list(_cubins(made)) for made in kernels]
    arch = kernels[0].metadata.target.arch
    codes = iter(disassemble(arch, [cubin for versions in cubins for _, cubin in versions]))
    return [
        [(ptxas, (code := next(codes)), _used(arch, cubin, code)) for ptxas, cubin in versions] for versions in cubins
    ]


def _cubins(made: Any) -> Iterator[tuple[str, bytes]]:
    """For each ptxas that may assemble the kernel: its version, and the cubin."""
    arch = made.metadata.target.arch
    usual = assembler(arch)
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        for tool in (knobs.nvidia.ptxas, knobs.nvidia.ptxas_blackwell):
            if tool == usual:
                yield tool.version, made.asm["cubin"]
            elif arch == 90 and "ttir" in made.asm:  # which kernels in Gluon do not have
                # The PTX requests the version of the newer ptxas, which the older one rejects.
                ptx.write_text(re.sub(r"\.version \d\.\d", ".version 8.7", made.asm["ptx"]))
                output(tool.path, "--gpu-name=sm_90a", str(ptx), "-o", str(cubin))
                yield tool.version, cubin.read_bytes()


def _used(arch: int, cubin: bytes, code: str) -> dict[str, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = output(knobs.nvidia.cuobjdump.path, "-res-usage", file.name)
    found = dict(re.findall(r"(REG|STACK):(\d+)", usage))
    # For sm_120, TMA calls a function with 8 bytes of arguments if an address belongs to another program of the
    # cluster, which never happens here.
    calls = len(re.findall(r"\bSTL\.64 \[R1\], RZ", code)) if arch == 120 else 0
    return {
        "registers": int(found["REG"]),
        "stack": int(found["STACK"]) - (8 if calls else 0),
        "local": len(re.findall(r"\b(?:LDL|STL)\b", code)) - calls,
    }


def _amd(kernels: list[Any]) -> list[list[Assembled]]:
    counts = r"\.(vgpr_count|vgpr_spill_count|private_segment_fixed_size):\s+(\d+)"
    codes = [made.asm["amdgcn"] for made in kernels]
    found = [{name: int(count) for name, count in re.findall(counts, code)} for code in codes]
    fields = {"registers": "vgpr_count", "stack": "private_segment_fixed_size", "local": "vgpr_spill_count"}
    return [
        [("", code, {field: numbers[name] for field, name in fields.items()})]
        for code, numbers in zip(codes, found, strict=True)
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=["sm_80", "sm_90", "sm_100", "gfx942"])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES), help="default: all")
    parser.add_argument("--kernel", nargs="+", help="names, as in the table; default: all kernels")
    described = "; ".join(f"{name}: {forms}" for name, forms in FORMS.items())
    parser.add_argument("--forms", choices=FORMS, default="all", help=described)


def run(options: argparse.Namespace) -> int:
    """Print the rows and, as the last line, a summary; 1 if a row has a fault."""
    print(f"triton {triton.__version__}")
    print(f"{'target':7} {'dtype':8} {'ptxas':5} {'tile':5} warps  regs stack local  shared matrix hgmma  kernel")
    rows = []
    for target in options.target:
        for dtype in options.dtype:
            for row in compiled(target, dtype, options.kernel, options.forms):
                rows.append(row)
                faults = "; ".join(row.faults())
                print(
                    f"{row.target:7} {row.dtype:8} {row.ptxas:5} {row.tile:5} {row.warps:5} {row.registers:5} "
                    f"{row.stack:5} {row.local:5} {row.shared:7} {row.matrix:6} {row.hgmma:5}  {row.kernel}"
                    + (f"  FAULT: {faults}" if faults else ""),
                    flush=True,
                )
    bad = sum(bool(row.faults()) for row in rows)
    worst = max(row.registers for row in rows)
    print(
        f"{len(rows)} kernels on {', '.join(options.target)} in {', '.join(options.dtype)}: {bad} with faults, "
        f"most registers {worst}"
    )
    return 1 if bad else 0
