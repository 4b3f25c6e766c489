"""The cost of a network."""

import pytest
import torch

from lmfn import LMFN
from lmfn.evaluation import count_gmacs, saved_bytes


def test_saved_bytes_of_a_network_that_anyone_can_count():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1), torch.nn.Sigmoid()
    )
    # The image, the ReLU's output (for its own backward and the next convolution), and the sigmoid's; no weights.
    assert saved_bytes(model, 8, 16) == 4 * 8 * 16 * (3 + 4 + 2)


def macs_of_the_paper(height, width):
    """Convolutions and products of the paper's network, written out layer by layer."""
    quarter = (height // 4) * (width // 4)
    eighth, sixteenth = quarter // 4, quarter // 16
    encoder = 64 * 9 * (3 * 16 + 64 * 4 + 64) * quarter + 64 * 64 * 9 * (eighth + sixteenth)
    encoder += 2 * 64 * 64 * 9 * (5 * quarter + 2 * eighth + sixteenth)
    reduce = 64 * 50 * 9 * quarter
    strided = ((height // 4 - 3) // 2 + 1, (width // 4 - 3) // 2 + 1)
    pooled = [(side - 7) // 3 + 1 for side in strided]
    esa = (50 * 12 + 12 * 12 + 12 * 50) * quarter
    esa += 12 * 12 * 9 * (strided[0] * strided[1] + 3 * pooled[0] * pooled[1])
    rfdb = (3 * 50 * 25 + 3 * 50 * 50 * 9 + 50 * 25 * 9 + 100 * 50) * quarter + esa
    alfm = 2 * 200 * 200 * quarter + 200 * 50 * quarter
    acfm = 50 * (9 + 3) * quarter
    head = 2 * 50 * 50 * 9 * (quarter + 4 * quarter) + 50 * 3 * 9 * 16 * quarter
    return encoder + reduce + 4 * rfdb + alfm + acfm + head


@pytest.mark.parametrize(("height", "width"), [(720, 1280), (256, 256)])
def test_gmacs_are_those_of_a_hand_count(height, width):
    assert count_gmacs(LMFN.from_preset("lmfn"), height, width) == pytest.approx(macs_of_the_paper(height, width) / 1e9)


def test_gmacs_of_attention_in_windows():
    """Each of 3 x 3 windows attends to its 96 x 96 of the map's 192 x 192 pixels; the cost of F F^T is unchanged."""
    whole, windows = (count_gmacs(LMFN.from_preset("lmfn", alfm_window=side), 768, 768) for side in (None, 384))
    assert windows - whole == pytest.approx(200**2 * (9 * 96**2 - 192**2) / 1e9)


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_gmacs_of_a_compiled_network_are_its_own():
    model = LMFN.from_preset("lmfn", channels=8, features=8, distilled=4, esa=4, rfdbs=1)
    assert count_gmacs(torch.compile(model, backend="eager"), 64, 96) == count_gmacs(model, 64, 96) > 0
