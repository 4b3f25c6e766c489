"""Small data sets in the layouts that are common on disk."""

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest


@pytest.fixture
def save() -> Callable[..., np.ndarray]:
    """Write a random image, or the given pixels, to a file; returns the pixels."""
    from lmfn import images  # not before pytest_configure has set Triton's interpreter

    rng = np.random.default_rng(0)

    def write(path: Path, height: int = 24, width: int = 32, pixels: np.ndarray | None = None) -> np.ndarray:
        if pixels is None:
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        images.write(path, images.Photo(pixels))
        return pixels

    return write


@pytest.fixture
def make_video() -> Callable[..., None]:
    """Write a video with this number of different frames: blocks of noise that move by one pixel per frame."""

    def write(
        path: Path, count: int, codec: str = "libx264", options: dict[str, str] | None = None, height: int = 48
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        width = 64
        scene = np.random.default_rng(1).integers(0, 256, (height // 4, (width + count) // 4 + 1, 3), dtype=np.uint8)
        scene = scene.repeat(4, 0).repeat(4, 1)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=30, options=options or {})
            stream.height, stream.width = height, width
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for n in range(count):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[:, n : n + width]), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())

    return write
