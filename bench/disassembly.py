"""Machine code of many kernels from one run of nvdisasm, which takes half a second to start; also where kernels jump by
a table, which is stored outside of the code."""

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from triton import knobs

_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/(.*)")
_JUMP = re.compile(r"(\b(?:BRA|BSSY|CALL|JMP)\b.*?)\b0x([0-9a-f]+)\s*;")
_BYTES = 16
"""Length of an instruction."""


def disassemble(arch: int, cubins: Sequence[bytes]) -> list[str]:
    """The code of each cubin, with addresses from 0 and labels, as `nvdisasm -c` prints it."""
    with tempfile.NamedTemporaryFile() as file:
        texts = [_sections(cubin, ".text.") for cubin in cubins]
        Path(file.name).write_bytes(b"".join(texts))
        binary = f"SM{arch}{'a' if arch >= 90 else ''}"
        listing = output(knobs.nvidia.nvdisasm.path, "--no-dataflow", "--binary", binary, file.name)
    lines = {int(address, 16): line for address, line in _LINE.findall(listing)}
    codes, begin = [], 0
    for cubin, text in zip(cubins, texts, strict=True):
        table = [at for (at,) in struct.iter_unpack("<I", _sections(cubin, ".nv.constant2."))]
        codes.append("\n".join(_labelled([lines[begin + at] for at in range(0, len(text), _BYTES)], begin, table)))
        begin += len(text)
    return codes


def output(*command: str) -> str:
    """What a command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _sections(cubin: bytes, prefix: str) -> bytes:
    """What the sections of all functions in a cubin hold whose names begin so; a cubin is a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, number, names = struct.unpack_from("<3H", cubin, 58)
    # Of each section: where its name begins, its kind, flags, address, offset and size.
    sections = [struct.unpack_from("<2I4Q", cubin, table + i * size) for i in range(number)]
    return b"".join(
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if cubin.startswith(prefix.encode(), sections[names][4] + name)
    )


def _labelled(lines: list[str], begin: int, table: list[int]) -> Iterator[str]:
    """The lines of a kernel that begins at address `begin`, with jumps to labels instead of addresses.

    `table` has the addresses to which it may jump by a table: those of all such jumps together.
    """
    targets = {int(found[2], 16) - begin for line in lines if (found := _JUMP.search(line))}
    if any("BRX" in line for line in lines):
        if not table or any(at % _BYTES or at >= len(lines) * _BYTES for at in table):
            raise ValueError(f"this is no table of jumps: {table}")
        targets.update(table)
    by_table = f'(*"BRANCH_TARGETS {",".join(f".L_{at:04x}" for at in table)}"*) ;'
    for i, line in enumerate(lines):
        at = i * _BYTES
        if at in targets:
            yield f".L_{at:04x}:"
        line = line.replace(";", by_table) if "BRX" in line else line
        yield f"/*{at:04x}*/" + _JUMP.sub(lambda jump: f"{jump[1]}`(.L_{int(jump[2], 16) - begin:04x}) ;", line)
