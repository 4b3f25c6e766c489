"""How close ALFM's attention is to selecting a single row, by image size: `python -m
experiments.attention.row_maximum`.

The features are those of crops of one photograph (corners and centre of 1280x720 pixels, mirrored beyond the borders if
it is smaller). The measure is the mean over M's rows of their largest value: 1 / NC if a row attends to all rows
equally, 1 if it selects one.
"""

import argparse
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import torch
from torch import Tensor

from lmfn import LMFN, atomic, images
from lmfn_kernels import attention_matrix, layer_gram

SIZES = [(64, 64), (128, 128), (256, 256), (384, 384), (640, 360), (960, 540), (1280, 720)]
"""Width and height of the crops."""
PHOTO = Path(skimage.data.__file__).with_name("motorcycle_left.png")
TEMPERATURE = 10.0  # initial temperature of cosines, for weights without one
STYLES = {"dot": ("#d55e00", "o"), "cosine": ("#0072b2", "s")}

Curves = dict[str, list[float]]
"""One value per size, by similarity."""


def extended(photo: Tensor, width: int, height: int) -> Tensor:
    """The centre of an image [1, 3, H, W], mirrored beyond its borders if it is smaller."""
    for dim, size in ((2, height), (3, width)):
        n = photo.shape[dim]
        place = np.pad(np.arange(n), max(0, size - n), mode="symmetric")
        first = (len(place) - size) // 2
        photo = photo.index_select(dim, torch.from_numpy(place[first : first + size]))
    return photo


def crops(frame: Tensor, width: int, height: int) -> list[Tensor]:
    """Corners and centre of a frame; only the frame if it is no larger."""
    down, right = frame.shape[2] - height, frame.shape[3] - width
    places = {(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)}
    return [frame[:, :, top : top + height, left : left + width] for top, left in sorted(places)]


@torch.inference_mode()
def measure(model: LMFN, frame: Tensor) -> Curves:
    """The mean row maximum of both similarities at every size, averaged over the crops."""
    found: Curves = {name: [] for name in STYLES}
    temperature = getattr(model.alfm, "temperature", None)
    scales = {"dot": None, "cosine": torch.tensor([TEMPERATURE]) if temperature is None else temperature}
    seen: list[Tensor] = []
    handles = [block.register_forward_hook(lambda _, __, output: seen.append(output)) for block in model.rfdbs]
    for width, height in SIZES:
        grams = []
        for image in crops(frame, width, height):
            model(image)
            grams.append(layer_gram(seen))
            seen.clear()
        for name, scale in scales.items():
            rows = attention_matrix(torch.cat(grams), scale)
            found[name].append(rows.amax(-1).mean().item())
    for handle in handles:
        handle.remove()
    return found


def draw(panels: dict[str, Curves], rows: int, out: Path) -> None:
    """One panel per set of weights, over the number of pixels of the image."""
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 4.6), sharey=True, layout="constrained", squeeze=False)
    pixels = [width * height for width, height in SIZES]
    for ax, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for name, values in curves.items():
            colour, marker = STYLES[name]
            ax.plot(pixels, values, color=colour, marker=marker, label=f"{name} similarity")
        ax.axhline(1 / rows, color="#777777", linestyle="--", linewidth=1, label=f"all {rows} alike")
        ax.set(title=title, xlabel="size of the image (pixels)", xscale="log", ylim=(0, 1.04))
        ax.set_xticks(pixels, [f"{width}x{height}" for width, height in SIZES], rotation=40, ha="right")
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("mean over the rows of M\nof their largest value")
    axes[0, 0].legend(loc="center left")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    atomic.write(out, content.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(prog="row_maximum", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).with_name("row-maximum.png"), help="the plot")
    parser.add_argument("--image", type=Path, default=PHOTO, help="a photograph (default: one of scikit-image's)")
    parser.add_argument("--weights", default="lmfn", help="trained weights (default: lmfn, included in the package)")
    options = parser.parse_args()
    trained = LMFN.from_pretrained(options.weights)
    config = trained.config
    if config.alfm != "channels":
        parser.error(f'{options.weights}: the network has alfm "{config.alfm}"; the rows of M must be channels')
    torch.manual_seed(0)
    models = {
        "initial weights (seed 0)": LMFN(config).eval(),
        f"trained weights ({Path(options.weights).name})": trained,
    }
    photo = torch.from_numpy(images.read_rgb(options.image)).permute(2, 0, 1)[None].float() / 255
    frame = extended(photo, *SIZES[-1])
    panels = {}
    for title, model in models.items():
        panels[title] = measure(model, frame)
        print(f"{title}, {options.image.name}")
        for i, (width, height) in enumerate(SIZES):
            print(f"{width}x{height}", *(f"{name} {values[i]:.3f}" for name, values in panels[title].items()))
    draw(panels, config.rfdbs * config.features, options.out)
    print(f"plot in {options.out}")


if __name__ == "__main__":
    main()
