"""What the compiler made of a kernel, and what must hold of it. Apart from `resources.py`, since it needs no Triton."""

from dataclasses import dataclass

SHARED = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
"""Bytes of shared memory that one program can have on each target."""


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
