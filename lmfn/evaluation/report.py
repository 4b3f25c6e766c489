"""Reports of an evaluation: strips of images, and a self-contained HTML page."""

import base64
import html
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lmfn import atomic, images
from lmfn.data.layouts import Pair, PairSet
from lmfn.evaluation.pictures import side_by_side
from lmfn.evaluation.results import LABELS, Evaluation, cells, gain

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ padding: .15rem .8rem; border-bottom: 1px solid #ccc; text-align: right; }}
td {{ font-variant-numeric: tabular-nums; }}
th:first-child, td:first-child {{ text-align: left; overflow-wrap: anywhere; }}
.facts td {{ text-align: left; }}
figure {{ margin: 2rem 0; }}
.pair {{ position: relative; --at: 50%; width: fit-content; max-width: 100%; }}
.pair img {{ display: block; max-width: 100%; height: auto; }}
.pair .after {{ position: absolute; inset: 0; clip-path: inset(0 0 0 var(--at)); }}
.pair::after {{ content: ""; position: absolute; inset: 0 auto 0 var(--at); border-left: 2px solid #fff; }}
.pair input {{ position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; z-index: 1; }}
.pair input {{ cursor: ew-resize; }}
.pair:focus-within {{ outline: 3px solid #06c; }}
details {{ margin: 2rem 0; }}
</style>
</head>
<body>
<h1>{title}</h1>
{means}
{facts}
{figures}
<details><summary>All {count} images</summary>
{rows}
</details>
<script>
for (const input of document.querySelectorAll(".pair input"))
  input.addEventListener("input", () => input.parentElement.style.setProperty("--at", input.value + "%"));
</script>
</body>
</html>
"""
FIGURE = """<figure>
<figcaption><b>{name}</b>: {caption}</figcaption>
<div class="pair"><img src="{before}" alt="{name}, blurred"><img class="after" src="{after}" alt="{name}, deblurred">
<input type="range" min="0" max="100" step="0.1" value="50" aria-label="{name}: blurred left, deblurred right">
</div>
</figure>"""


def write(
    folder: Path, evaluation: Evaluation, pairs: PairSet, show: Callable[[Pair], list[np.ndarray]], worst: int
) -> None:
    """Write `report.html` and, for the `worst` images with the least and as many with the largest gain in PSNR, the
    strips `strips/worst-1-NAME.png`, `strips/best-1-NAME.png`, ...: blurred, deblurred and sharp side by side.

    `show` gives these three of a pair, uint8 `[H, W, 3]`. The page has sliders between the first two.
    """
    by_name = {pair.name: pair for pair in pairs}
    first = evaluation.metrics[0]
    by_gain = sorted(evaluation.rows, key=lambda row: gain(row.blurred[first], row.deblurred[first]))
    least, most = by_gain[:worst], by_gain[worst:][::-1][:worst]
    figures = []
    for end, word, rows in (("worst", "least", least), ("best", "most", most)):
        figures.append(f"<h2>The {len(rows)} that gained {word} {LABELS[first][0]}</h2>" if rows else "")
        for n, row in enumerate(rows, 1):
            shown = show(by_name[row.name])
            strip = images.Photo(side_by_side(shown))
            name = f"{end}-{n}-{row.name.replace('/', '-')}".encode()[: atomic.LONGEST_NAME - len(".png")]
            images.write(folder / "strips" / f"{name.decode(errors='ignore')}.png", strip)
            changes = ((LABELS[m][0], *cells(m, row.blurred[m], row.deblurred[m])) for m in evaluation.metrics)
            caption = "; ".join(f"{name} {a} to {b} ({change})" for name, a, b, change in changes)
            before, after = map(_data_url, shown[:2])
            figures.append(FIGURE.format(name=html.escape(row.name), caption=caption, before=before, after=after))
    means = [
        [LABELS[metric][0], *cells(metric, evaluation.blurred[metric], evaluation.deblurred[metric])]
        for metric in evaluation.metrics
    ]
    kinds = ["blurred", "deblurred", "gain"]
    rows_of_all = [
        [row.name, f"{row.width}x{row.height}"]
        + [cell for metric in evaluation.metrics for cell in cells(metric, row.blurred[metric], row.deblurred[metric])]
        for row in by_gain
    ]
    page = PAGE.format(
        title=html.escape(f"{evaluation.data}, protocol {evaluation.protocol}: {evaluation.weights}"),
        means=_table(["", *kinds], means),
        facts=_table([], [[name, text] for name, text in evaluation.facts().items()], 'class="facts"'),
        figures="\n".join(figures),
        count=len(rows_of_all),
        rows=_table(
            ["image", "size", *(f"{LABELS[m][0]} {k}" for m in evaluation.metrics for k in kinds)], rows_of_all
        ),
    )
    atomic.write(folder / "report.html", page.encode())


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], attributes: str = "") -> str:
    lines = [f"<tr>{''.join(f'<th>{html.escape(head)}</th>' for head in heads)}</tr>"] if heads else []
    lines += [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
    return "\n".join([f"<table {attributes}>", *lines, "</table>"])


def _data_url(pixels: np.ndarray) -> str:
    """The image as WebP in a data URI."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, "image.webp")
        images.write(file, images.Photo(pixels))
        return "data:image/webp;base64," + base64.b64encode(file.read_bytes()).decode()
