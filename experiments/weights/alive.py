"""Count the hidden units of residual blocks that die in a short training from random weights, by initial size and rate.

python experiments/weights/alive.py
"""

import itertools

import torch
import torch.nn.functional as F

from lmfn.network import Network, preset
from lmfn.network.activity import Activity, unit_activity
from lmfn.network.blocks import RB

STEPS = 150
SMALL = {"channels": 16, "features": 16, "distilled": 8, "esa": 4, "rfdbs": 1, "similarity": "cosine"}


def squares(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two patches of random squares: blurred horizontally by nine pixels, and sharp."""
    sharp = F.interpolate(torch.rand(2, 3, 10, 10, generator=generator), size=64)
    return F.avg_pool2d(F.pad(sharp, (4, 4, 0, 0), mode="replicate"), (1, 9), 1), sharp


def train(hidden: float, rate: float) -> str:
    """Train a small network whose first convolutions start at `hidden` times their usual size; a row of the table."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Network(preset("lmfn", **SMALL))
    with torch.no_grad():
        for block in model.modules():
            if isinstance(block, RB):
                block.conv1.weight.mul_(hidden)
    adam = torch.optim.AdamW(model.parameters(), weight_decay=0)
    batches = [squares(generator) for _ in range(STEPS)]
    gains = []
    for step, (blurred, sharp) in enumerate(batches):
        for group in adam.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 30)
        output = model(blurred)
        (output - sharp).abs().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        gains.append(10 * (F.mse_loss(blurred, sharp) / F.mse_loss(output.detach(), sharp)).log10().item())
    shares = unit_activity(model, torch.cat([blurred for blurred, _ in batches[:8]]))
    found = Activity.of(torch.cat([share for name, share in shares.items() if name.startswith("encoder")]))
    return (
        f"| {hidden:g} | {rate:g} | {found.dead} | {found.silent} | {found.firing:.2f} | {sum(gains[-50:]) / 50:+.2f} |"
    )


if __name__ == "__main__":
    print("| initial size | rate | dead of 128 | silent | firing | gain over the last 50 steps (dB) |")
    print("|---|---|---|---|---|---|")
    for rate, hidden in itertools.product((3e-4, 1e-3, 3e-3), (0.1, 1.0)):
        print(train(hidden, rate), flush=True)
