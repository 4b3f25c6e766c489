"""Names of files, which may hold any character, in reports and tables."""

CONTROL = {n: f"\\x{n:02x}" for n in (*range(32), *range(127, 160))} | {ord("\n"): "\\n", ord("\r"): "\\r"}
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet computes."""


def one_line(text: str) -> str:
    """The text with escapes for what would end the line, go back in it, or is no UTF-8."""
    return text.translate(CONTROL).encode(errors="backslashreplace").decode()


def to_cell(text: str) -> str:
    """The text for a cell of a CSV file: what a spreadsheet would compute begins with an apostrophe."""
    return f"'{text}" if text.startswith((*FORMULA, "'")) else text


def from_cell(cell: str) -> str:
    """The text that `to_cell` was given."""
    return cell.removeprefix("'")
