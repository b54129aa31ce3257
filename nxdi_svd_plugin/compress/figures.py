"""The figures of report.md, drawn with matplotlib (extra `plots`) without a display and without global state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nxdi_svd_plugin.svd_config import PROJECTIONS
from nxdi_svd_plugin.versions import import_extra

DPI = 120
COLOURS = dict(zip(PROJECTIONS, ("tab:blue", "tab:orange", "tab:green"), strict=True))


class Measured(Protocol):
    """A model with a ratio and evaluation rows."""

    @property
    def ratio(self) -> float:
        """Share of the MLP parameters that was saved."""

    @property
    def rows(self) -> Sequence[Mapping[str, Any]]:
        """Evaluation rows."""


Points = dict[str, list[tuple[float, float]]]


def series(entries: Sequence[Measured], metric: str) -> tuple[Points, Points]:
    """(compressed, base) points (ratio, score) of each task that has this metric, by rising ratio."""
    compressed: Points = {}
    base: Points = {}
    for entry in sorted(entries, key=lambda e: e.ratio):
        for row in entry.rows:
            if row["metric"] == metric:
                compressed.setdefault(row["task"], []).append((entry.ratio, row["compressed"]))
                base.setdefault(row["task"], []).append((entry.ratio, row["base"]))
    return compressed, base


def quality(entries: Sequence[Measured], path: Path) -> None:
    """Perplexity (log scale) and accuracy against the ratio; the dense model is the point at ratio 0."""
    figure = new_figure(10, 4)
    panels = figure.subplots(1, 2)
    for axes, metrics, label in (
        (panels[0], ("perplexity", "word_perplexity"), "perplexity"),
        (panels[1], ("acc",), "accuracy"),
    ):
        drawn = sum(draw(axes, entries, metric) for metric in metrics)
        axes.set_xlabel("ratio (share of the MLP parameters saved)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if drawn:
            axes.legend(fontsize="small")
        else:
            axes.text(0.5, 0.5, "not measured", ha="center", transform=axes.transAxes)
    if panels[0].lines:
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].yaxis.set_minor_formatter("{x:g}")
    save(figure, path)


def draw(axes: Any, entries: Sequence[Measured], metric: str) -> int:
    """One line a task from the dense score at ratio 0; returns how many."""
    compressed, base = series(entries, metric)
    for task, points in compressed.items():
        dense = [(0.0, base[task][0][1])]
        label = task if metric in ("acc", "perplexity") else f"{task} (word)"
        axes.plot(*zip(*dense, *points, strict=False), marker="o", label=label)
    return len(compressed)


def layers(matrices: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Relative output error of each layer's projections above the map of their ranks; "d" marks a dense one."""
    figure = new_figure(10, 5)
    errors, ranks = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    count = 1 + max(record["layer"] for record in matrices)
    for name in PROJECTIONS:
        records = [r for r in matrices if r["projection"] == name and r.get("relative_error") is not None]
        values = [100 * record["relative_error"] for record in records]
        errors.plot([r["layer"] for r in records], values, marker=".", label=name, color=COLOURS[name])
    errors.set_ylabel("output error (%)")
    errors.set_title(title)
    errors.grid(alpha=0.3)
    errors.legend(fontsize="small")
    grid = [[float("nan")] * count for _ in PROJECTIONS]
    for record in matrices:
        row = PROJECTIONS.index(record["projection"])
        if record["form"] == "dense":
            ranks.text(record["layer"], row, "d", ha="center", va="center", fontsize=7)
        else:
            grid[row][record["layer"]] = record["rank"]
    image = ranks.imshow(grid, aspect="auto", cmap="viridis")
    ranks.set_yticks(range(len(PROJECTIONS)), PROJECTIONS)
    ranks.set_xlabel("layer")
    figure.colorbar(image, ax=[errors, ranks], label="rank")
    save(figure, path)


def new_figure(width: float, height: float) -> Any:
    """An empty figure in inches."""
    return import_extra("matplotlib.figure", "plots").Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Write a PNG."""
    figure.savefig(path, dpi=DPI, format="png")
