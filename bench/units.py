"""The parts of the network for one photograph: the registry's op for each, its size, and how often it occurs."""

from dataclasses import dataclass

from bench.rows import Shape

SIZE = (720, 1280)
"""Height and width of the photograph."""


@dataclass(frozen=True)
class Unit:
    name: str
    op: str
    channels: int
    part: int
    """The height and width of the op's maps are the photograph's divided by this, rounded up."""
    times: int = 1
    maps: int = 1

    @property
    def shape(self) -> Shape:
        return Shape(1, self.maps, self.channels, *(-(-size // self.part) for size in SIZE))


UNITS = (
    Unit("stem", "stem", 64, 1),
    Unit("encoder, 1/2 to 1/4", "conv3x3_down", 64, 2),
    Unit("encoder, 1/4 to 1/8", "conv3x3_down", 64, 4),
    Unit("encoder, 1/8 to 1/16", "conv3x3_down", 64, 8),
    Unit("residual block at 1/16", "residual_block", 64, 16),
    Unit("residual block at 1/8", "residual_block", 64, 8, times=2),
    Unit("residual block at 1/4", "residual_block", 64, 4, times=5),
    Unit("fusion of scales at 1/8", "upsample_add", 64, 8),
    Unit("fusion of scales at 1/4", "upsample_add", 64, 4),
    Unit("encoder to decoder", "conv3x3_reduce", 64, 4),
    Unit("RFDB", "rfdb", 50, 4, times=4),
    Unit("ALFM, ACFM and merge", "attention_merge", 50, 4, maps=4),
    Unit("head, residual block at 1/4", "residual_block", 50, 4),
    Unit("head, residual block to 1/2", "residual_block_up", 50, 4),
    Unit("head, convolution to 1/1", "upsampled_conv3x3", 50, 2),
)
