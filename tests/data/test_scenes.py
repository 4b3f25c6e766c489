"""Text, patterns, areas of uniform colour and softness in photographs."""

from typing import get_args

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from lmfn.data.synthesis.scenes import FONT, Overlay, Pattern, paint, soften

GREY = torch.full((1, 60, 80, 3), 100, dtype=torch.uint8)
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def overlay(pattern: Pattern, area: tuple[int, int, int, int] = (0, 0, 60, 80), cell: float = 8.0) -> Overlay:
    return Overlay(pattern, BLACK, WHITE, area, cell, 0.0, 7)


def test_checks_are_squares_with_hard_edges() -> None:
    found = paint(GREY, [overlay("checks")], [(0, 0)])[0, ..., 0].numpy()
    y, x = np.mgrid[:60, :80]
    np.testing.assert_array_equal(found, np.where((y // 8 + x // 8) % 2, 0, 255))


@pytest.mark.parametrize("pattern", get_args(Pattern))
def test_an_overlay_covers_its_area_and_nothing_else(pattern: Pattern) -> None:
    found = paint(GREY, [overlay(pattern, (12, 20, 30, 41), cell=3.0)], [(0, 0)])[0]
    inside = torch.zeros(60, 80, dtype=torch.bool)
    inside[12:42, 20:61] = True
    assert (found[~inside] == 100).all()
    values = found[inside].unique()
    assert values.min() < 20
    assert pattern == "flat" or values.max() > 200


@pytest.mark.parametrize("pattern", get_args(Pattern))
def test_a_part_is_the_part_of_the_whole(pattern: Pattern) -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        drawn = Overlay.draw(rng, pattern, (0, 0, 60, 80))
        whole = paint(GREY, [drawn], [(0, 0)])[0]
        part = paint(GREY[:, :30, :40], [drawn], [(17, 23)])[0]
        assert (part.int() - whole[17:47, 23:63].int()).abs().float().mean() < 0.5  # a border in the last bit
        top, left, height, width = drawn.area
        assert top >= 0 and left >= 0 and top + height <= 60 and left + width <= 80  # noqa: PT018


def test_many_overlays_are_those_of_each_alone() -> None:
    rng = np.random.default_rng(2)
    drawn = [Overlay.draw(rng, pattern, (0, 0, 60, 80)) for pattern in get_args(Pattern)[::-1] * 2]
    corners = [(3 * n, 40 - n) for n in range(len(drawn))]
    windows = torch.randint(256, (len(drawn), 60, 80, 3), generator=torch.manual_seed(0), dtype=torch.uint8)
    together = paint(windows, drawn, corners)
    for n, found in enumerate(together):
        assert torch.equal(found, paint(windows[n : n + 1], drawn[n : n + 1], corners[n : n + 1])[0])


def test_letters_can_be_read() -> None:
    assert FONT.shape == (36, 9, 6)
    letter = ["".join(".#"[int(dot)] for dot in row[:5]) for row in FONT[0, :7]]
    assert letter == [".###.", "#...#", "#...#", "#####", "#...#", "#...#", "#...#"]
    assert len({tuple(f.flatten().tolist()) for f in FONT}) == 36
    assert not FONT[-1].any()
    assert not FONT[:, 7:].any()
    assert not FONT[:, :, 5].any()
    black = torch.zeros(1, 36, 60, 3, dtype=torch.uint8)
    found = paint(black, [overlay("text", (0, 0, 36, 60), cell=1.0)], [(0, 0)])
    cells = (found[0, ..., 0] == 0).float().unfold(0, 9, 9).unfold(1, 6, 6).reshape(-1, 9, 6)
    assert all(any(torch.equal(cell, glyph) for glyph in FONT) for cell in cells)
    assert len({tuple(cell.flatten().tolist()) for cell in cells}) > 10


def test_softness_is_a_gaussian() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    for sigma in (0.5, 1.2):
        found = soften(torch.from_numpy(photo)[None], [sigma])[0].numpy()
        expected = gaussian_filter(photo.astype(float), (sigma, sigma, 0), mode="nearest", radius=(5, 5, 0))
        assert np.abs(found - expected).max() <= 0.51
    both = soften(torch.from_numpy(np.stack([photo, photo])), [0.5, 1.2])
    np.testing.assert_array_equal(both[1].numpy(), found)
