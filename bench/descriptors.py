"""Check in Hopper machine code that the upper half of every wgmma descriptor is a valid constant.

A wgmma instruction addresses a matrix in shared memory by a 64-bit descriptor in uniform registers. The lower half is
the address; the upper half, the distance between rows and the swizzle, is known to the compiler. For one kernel of this
package, ptxas 12.8 took it from a register that held an address. On a GPU that is an "illegal memory access"; register
counts, spills and the interpreter do not reveal it. This module therefore propagates constants through the output of
`nvdisasm -c`, along all paths; an upper half that is not provably a constant of the right form is a fault.
"""

import re
from functools import lru_cache
from typing import NamedTuple


class _Mixed(NamedTuple):
    """Something unknown XOR a constant: ptxas swaps two registers by three XORs."""

    unknown: str
    """What is the same in all values with this name."""
    constant: int


Values = dict[str, int | _Mixed]
"""Registers of which something is known, with their values."""

ENDS = ("BRA", "BRX", "JMP", "EXIT", "RET")
"""Instructions after which the next one is not run, unless they have a condition."""
_LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_LABEL = re.compile(r"(\.\w+):")
_PREDICATE = re.compile(r"!?U?P[0-9T]")
_REGISTER = re.compile(r"(U?R)(\d+)")
_VALUE = re.compile(r"[-~]?(?:U?R(?:\d+|Z)|0x[0-9a-f]+)")
_SUMS = {"UIADD3", "UIADD3.X", "IADD3", "IADD3.X", "VIADD"}
_COPIES = {"MOV", "UMOV", "R2UR"}
_MULTIPLY_ADDS = {"IMAD.MOV.U32", "IMAD.U32", "IMAD.X"}
_TABLES = {"LOP3.LUT", "ULOP3.LUT"}
_BUILDING = {"UIADD3.64", "CS2R"} | _SUMS | _COPIES | _MULTIPLY_ADDS | _TABLES
"""Instructions that build descriptors."""
_BITS = 0xFFFFFFFF
_MEANING = 0xC00E3FFF
"""The used bits of the upper half: distance between rows, offset of the swizzle pattern, swizzle mode."""


class Instruction(NamedTuple):
    at: str
    conditional: bool
    op: str
    operands: list[str]
    written: list[str]
    """The registers that the instruction writes."""
    targets: list[str]
    """The labels that it may jump to: one, or those of a jump table (BRX)."""


class Block(NamedTuple):
    """The instructions that follow a label."""

    label: str
    instructions: list[Instruction]


def scan(disassembly: str) -> tuple[int, list[str]]:
    """The number of wgmma instructions, and the faults of their descriptors.

    Raises ValueError if no path leads to one of them: then a jump is missing in the disassembly.
    """
    blocks = blocks_of(disassembly)
    places = {block.label: place for place, block in enumerate(blocks)}
    # The constants known at the start of each reachable block.
    known: dict[int, Values] = {0: {}}
    todo = [0]
    while todo:
        place = todo.pop()
        for following, values in _after(blocks[place], place, places, known[place]):
            before = known.get(following)
            after = values if before is None else _common(before, values)
            if after != before and following < len(blocks):
                known[following] = after
                todo.append(following)
    products, faults = 0, []
    for place, values in known.items():
        values = dict(values)
        for instruction in blocks[place].instructions:
            if _is_product(instruction):
                products += 1
                faults += _wrong(instruction, values)
            _step(instruction, values)
    if products < (number := sum(_is_product(one) for block in blocks for one in block.instructions)):
        raise ValueError(f"only {products} of {number} wgmma instructions are reached")
    return products, sorted(faults)


def _is_product(instruction: Instruction) -> bool:
    return any("gdesc[" in operand for operand in instruction.operands)


@lru_cache(maxsize=1)  # all checks of a kernel follow one another
def blocks_of(disassembly: str) -> list[Block]:
    blocks = [Block("", [])]
    for line in disassembly.splitlines():
        if label := _LABEL.match(line):
            blocks.append(Block(label[1], []))
        elif found := _LINE.search(line):
            at, predicate, op, rest = found.groups()
            operands = [operand.strip().replace(".reuse", "") for operand in rest.split(",")]
            # BSSY only names where the warp's threads meet again; they get there from a BSYNC right before.
            targets = [] if op.startswith("BSSY") else re.findall(r"`\(([^)]+)\)", rest)
            if table := re.search(r"BRANCH_TARGETS ([^\"]+)", rest):
                targets += table[1].split(",")
            written = _written(op, operands)
            blocks[-1].instructions.append(Instruction(at, predicate is not None, op, operands, written, targets))
    return blocks


def _written(op: str, operands: list[str]) -> list[str]:
    """The first operand other than a predicate, with the consecutive registers that belong to it."""
    first = next((operand for operand in operands if not _PREDICATE.fullmatch(operand)), "")
    found = _REGISTER.fullmatch(first)
    if not found:
        return []
    if product := re.match(r"[HIQ]GMMA\.64x(\d+)x", op):
        width = int(product[1]) // 2
    elif ".128" in op or op.startswith(("HMMA", "IMMA", "LDSM")):
        width = 4
    else:
        width = 2 if ".64" in op or "WIDE" in op or op == "CS2R" or op[0] == "D" else 1
    return [f"{found[1]}{int(found[2]) + i}" for i in range(width)]


def _after(block: Block, place: int, places: dict[str, int], values: Values) -> list[tuple[int, Values]]:
    """The successors of a block, with the constants known there."""
    values, found = dict(values), []
    for instruction in block.instructions:
        found += [(places[target], dict(values)) for target in instruction.targets if target in places]
        if not instruction.conditional and instruction.op.split(".")[0] in ENDS:
            return found
        _step(instruction, values)
    return [*found, (place + 1, values)]


def _common(a: Values, b: Values) -> Values:
    return {register: value for register, value in a.items() if b.get(register) == value}


def _wrong(instruction: Instruction, values: Values) -> list[str]:
    """Four registers hold the descriptors of both operands; the first is unused if that operand is in registers."""
    place = next(i for i, operand in enumerate(instruction.operands) if "gdesc[" in operand)
    first = int(re.sub(r"\D*(\d+).*", r"\1", instruction.operands[place]))
    found = []
    for register in [f"UR{first + 1}", f"UR{first + 3}"][0 if place == 1 else 1 :]:
        value = values.get(register)
        if not isinstance(value, int):
            found.append(f"{instruction.at}: {register} of a wgmma descriptor is not a constant")
        elif value & ~_MEANING:
            found.append(f"{instruction.at}: {register} of a wgmma descriptor is {value:#x}")
    return found


def _step(instruction: Instruction, values: Values) -> None:
    """The constants known after an instruction."""
    if instruction.op.startswith("CALL"):
        values.clear()
        return
    results = _xor(instruction, values) or _results(instruction, values)
    for place, register in enumerate(instruction.written):
        value = results[place] if place < len(results) else None
        # A predicated instruction may leave the old value.
        if value is None or (instruction.conditional and values.get(register) != value):
            values.pop(register, None)
        else:
            values[register] = value


def _xor(instruction: Instruction, values: Values) -> list[int | _Mixed | None]:
    """What an XOR of two registers writes; nothing for other instructions."""
    if instruction.operands[3:5] not in (["RZ", "0x3c"], ["URZ", "0x3c"]) or "LOP3.LUT" not in instruction.op:
        return []
    sources = instruction.operands[1:3]
    a, b = (values.get(source, _value(source, values)) for source in sources)
    if a is None and b is None:
        return [None]
    if a is None or b is None:
        # Nothing from an earlier turn of a loop has this name: it is not known where the turns join the way in.
        unknown = _Mixed(instruction.at, 0)
        values[sources[0 if a is None else 1]] = unknown
        a, b = unknown if a is None else a, unknown if b is None else b
    a, b = (_Mixed("", x) if isinstance(x, int) else x for x in (a, b))
    constant = a.constant ^ b.constant
    if a.unknown == b.unknown:
        return [constant]
    return [None if a.unknown and b.unknown else _Mixed(a.unknown or b.unknown, constant)]


def _results(instruction: Instruction, values: Values) -> list[int | None]:
    """The constants an instruction writes, for the kinds that build descriptors; None for an unknown value.

    Carries are ignored: the lower half of a descriptor is far from overflowing.
    """
    op = instruction.op
    if op not in _BUILDING:  # most instructions
        return []
    sources = [operand for operand in instruction.operands[1:] if _VALUE.fullmatch(operand)]
    known = [_value(source, values) for source in sources]
    if op == "UIADD3.64":
        return [_sum(known), _sum([_value(_upper_half(source), values) for source in sources])]
    if op in _SUMS:
        return [_sum(known)]
    if op == "CS2R" and instruction.operands[1:] == ["SRZ"]:
        return [0, 0]
    if op in _COPIES and len(known) == 1:
        return known
    if op in _MULTIPLY_ADDS and known[:2] == [0, 0]:
        return known[2:3]
    if op in _TABLES and len(known) == 4:
        return [_by_table(*known)]
    return []


def _value(operand: str, values: Values) -> int | None:
    name = operand.lstrip("-~")
    value = int(name, 16) if name.startswith("0x") else 0 if name in ("RZ", "URZ") else values.get(name)
    if not isinstance(value, int):
        return None
    return {"-": -value, "~": ~value}.get(operand[0], value) & _BITS


def _upper_half(operand: str) -> str:
    """The upper half of a 64-bit operand: the next register, or the sign extension of a constant."""
    if operand.lstrip("-~").startswith("0x"):
        return "0xffffffff" if operand.startswith("-") else "0x0"
    return re.sub(r"\d+", lambda number: str(int(number[0]) + 1), operand)


def _sum(terms: list[int | None]) -> int | None:
    known = [term for term in terms if term is not None]
    return sum(known) & _BITS if len(known) == len(terms) else None


def _by_table(a: int | None, b: int | None, c: int | None, table: int | None) -> int | None:
    """Bitwise lookup (LOP3): each result bit is the bit of `table` selected by the bits of a, b and c."""
    if a is None or b is None or c is None or table is None:
        return None
    result = 0
    for row in range(8):
        if table >> row & 1:
            result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
    return result & _BITS
