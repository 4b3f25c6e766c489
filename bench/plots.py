"""The plots of `python -m bench report`: one folder of PNG files per device."""

from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.rows import OURS, Row
from bench.tables import Line, groups, lines

COLOURS = {
    "rfdb": "#0072b2",
    "layer_attention": "#d55e00",
    "channel_gate": "#009e73",
    "attention_merge": "#117733",
    "distill_stage": "#56b4e9",
    "distill_fuse": "#e69f00",
    "esa_gate": "#f0e442",
    "conv3x3": "#cc79a7",
    "stem": "#882255",
    "residual_block": "#332288",
    "residual_block_up": "#88ccee",
    "conv3x3_down": "#ddcc77",
    "conv3x3_reduce": "#44aa99",
    "upsample_add": "#999933",
    "upsampled_conv3x3": "#aaaaaa",
    "lmfn": "#222222",
}
"""The palettes of Okabe and Ito, then Tol, which colour-blind readers can distinguish."""


def draw(folder: Path, verbs: dict[str, list[Row]]) -> Iterator[Path]:
    """Draw every plot for which there are rows; returns the files."""
    made: list[tuple[str, str, Callable[[list[Row]], Figure]]] = [
        ("ops", "roofline", roofline),
        ("ops", "speedup", speedup),
        ("memory", "memory", memory),
        ("memory", "time", time),
    ]
    for verb, name, plot in made:
        if verbs.get(verb):
            figure = plot(verbs[verb])
            path = folder / f"{name}.png"
            folder.mkdir(exist_ok=True)
            figure.savefig(path, dpi=110, metadata={"Software": None})
            plt.close(figure)
            yield path


def title(row: Row) -> str:
    return f"{row.machine.device}, {row.dtype}" + (f", {row.machine.threads} threads" if row.machine.threads else "")


def roofline(rows: list[Row]) -> Figure:
    """Arithmetic rate by operations per byte under the measured ceilings; ours filled, the fastest other hollow."""
    figure, ax = plt.subplots(figsize=(8, 5.5), layout="constrained")

    def intensity(row: Row) -> float:
        return 1e3 * row.tflops / row.gbps

    first = rows[0]
    for group in groups(row for row in rows if row.dtype == first.dtype):
        marker = {"infer": "o", "fwd": "<", "bwd": ">", "full": "s"}[group.ours.mode]
        for row in (group.ours, *group.others[:1]):
            ours = row is group.ours
            ax.plot(
                intensity(row),
                row.tflops,
                marker,
                color=COLOURS[row.op],
                markerfacecolor=COLOURS[row.op] if ours else "none",
                markersize=8,
                alpha=0.9,
            )
    at = [intensity(row) for row in rows]
    x = np.geomspace(min(at) / 4, max(at) * 4, 200)
    copy, matrix = first.machine.copy_gbps, first.machine.matrix_tflops
    ax.plot(x, np.minimum(x * copy / 1e3, matrix), color="black", linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="operations per byte (minimum arithmetic and traffic)", ylabel="TFLOP/s")
    ax.set_title(
        f"Roofline: {title(first)}\nceilings: {copy:.3g} GB/s copied, {matrix:.3g} TFLOP/s multiplied", fontsize=10
    )
    for op in dict.fromkeys(row.op for row in rows):
        ax.plot([], [], "o", color=COLOURS[op], label=op)
    for mode, marker in {"infer": "o", "fwd": "<", "bwd": ">", "full": "s"}.items():
        if any(row.mode == mode for row in rows):
            ax.plot([], [], marker, color="black", label=f"{mode}, ours")
            ax.plot([], [], marker, color="black", markerfacecolor="none", label=f"{mode}, fastest other")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    ax.grid(which="major", alpha=0.3)
    return figure


def speedup(rows: list[Row]) -> Figure:
    """Speedup over the fastest other provider, one bar per op, mode and shape."""
    found = [group for group in groups(rows) if group.others][::-1]
    figure, ax = plt.subplots(figsize=(8, 1.4 + 0.27 * len(found)), layout="constrained")
    for y, group in enumerate(found):
        ax.barh(y, group.faster, color=COLOURS[group.ours.op], alpha=1 if group.ours.mode == "infer" else 0.65)
        text = ax.text(group.faster, y, f" {group.faster:.2f}, {group.others[0].provider}", va="center", fontsize=8)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # legible in front of the line at 1
    ax.set_yticks(
        range(len(found)), [f"{g.ours.op} {g.ours.mode} {g.ours.shape} {g.ours.dtype}" for g in found], fontsize=8
    )
    ax.axvline(1, color="black", linewidth=1)
    ax.set_xlim(0, 1.25 * max([group.faster for group in found], default=1))
    ax.set_xlabel("speedup over the fastest other provider, named at the bar")
    ax.set_title(f"{title(rows[0])}: ours is {groups(rows)[0].ours.provider}", fontsize=10)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def by_size(rows: list[Row], value: Callable[[Row], float], label: str, exponents: bool) -> Figure:
    """One panel for inference and one for forward and backward; ours solid, the others dashed."""
    found = [line for line in lines(rows) if line.axis == "pixels"]
    modes = list(dict.fromkeys(line.rows[0].mode for line in found))
    figure, axes = plt.subplots(
        1, len(modes), figsize=(5.5 * len(modes), 4.8), layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    for ax, mode in zip(axes[0], modes, strict=True):
        for line in found:
            if line.rows[0].mode == mode:
                _line(ax, line, value, exponents)
        ax.set(xscale="log", yscale="log", xlabel="pixels of the op's maps", ylabel=label)
        ax.set_title(f"{mode}: {title(rows[0])}", fontsize=10)
        ax.grid(which="major", alpha=0.3)
        ax.legend(fontsize=8)
    return figure


def _line(ax: Axes, line: Line, value: Callable[[Row], float], exponents: bool) -> None:
    row, ours = line.rows[0], line.rows[0].provider in OURS
    ax.plot(
        line.sizes,
        [value(row) for row in line.rows],
        "o-" if ours else "s--",
        color=COLOURS[row.op],
        markerfacecolor=COLOURS[row.op] if ours else "none",
        label=f"{row.op}, {row.provider}" + (f": size^{line.exponent(value):.2f}" if exponents else ""),
    )


def memory(rows: list[Row]) -> Figure:
    return by_size(rows, lambda row: row.peak_bytes / 2**20, "peak memory, MiB", exponents=False)


def time(rows: list[Row]) -> Figure:
    return by_size(rows, lambda row: row.p50, "time, ms", exponents=True)
