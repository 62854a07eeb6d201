"""A GPU's report as a picture: `python -m peers.gpu_chart gpu.json gpu.png`.

One panel for whole lists, one for the matrix products at the largest number of rows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot

mpl.use("Agg")
_OWN, _OTHER = "#c2410c", "#64748b"


def main() -> None:
    """Draw."""
    source, target = map(Path, sys.argv[1:])
    report = json.loads(source.read_text(encoding="utf-8"))
    lists = [
        (f"{one['model']}: {one['system']}", one["median_ms"])
        for one in report["lists"]
        if one["failure"] is None
    ]
    products = [one for one in report["times"] if one["what"] == "product" and not one["failure"]]
    most = max((one["size"][0] for one in products), default=0)
    rates = [
        (f"{' x '.join(map(str, one['size']))}: {one['system']}", one["rate"])
        for one in products
        if one["size"][0] == most
    ]
    panels = [("wall time of a list or batch, ms", lists), (f"TFLOP/s at M = {most}", rates)]
    heights = [len(bars) + 3 for _, bars in panels]
    figure, axes = pyplot.subplots(
        2,
        1,
        figsize=(9, 0.24 * sum(heights)),
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for axis, (title, bars) in zip(axes, panels, strict=True):
        colors = [_OWN if "ours" in label else _OTHER for label, _ in bars]
        axis.barh([label for label, _ in bars], [value for _, value in bars], color=colors)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=7)
    figure.suptitle(report["device"], fontsize=8)
    figure.savefig(target, dpi=130)


if __name__ == "__main__":
    main()
