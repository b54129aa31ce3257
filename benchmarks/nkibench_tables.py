"""The fit, the table and the plot that docs/simulator.md shows of the rows in benchmarks/data/nkibench.jsonl."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from nxdi_svd_plugin.hardware import CLOCK_HZ, PARTITIONS
from nxdi_svd_plugin.report.figures import new_figure, save

ROOT = Path(__file__).parents[1]
PAGE, PLOT = ROOT / "docs" / "simulator.md", ROOT / "docs" / "nkibench.png"
Row = dict[str, Any]
PEAK_FLOPS = 2 * PARTITIONS * PARTITIONS * CLOCK_HZ["pe"]
NEGLIGIBLE = 0.01
"""Share of the latency below which an engine's activity says nothing about the cost of its instructions."""


# ---- the fit: kernels in alphabetical order, the even ones are fitted on, the odd ones are predicted
def halves(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The kernels to fit on and those to state the error on."""
    ordered = sorted(rows, key=lambda row: row["kernel"])
    return ordered[::2], ordered[1::2]


def stall_cycles(rows: list[Row]) -> int:
    """Cycles an instruction takes beyond its formula: least sum of |log(modelled / measured)| of engine activity."""
    points = [
        (row["simulated"][f"{engine}_cycles"], row["simulated"]["issues"].get(engine, 0), busy * CLOCK_HZ[engine] / 1e6)
        for row in rows
        for engine, busy in row["measured"]["busy_us"].items()
        if engine != "gpsimd" and busy > NEGLIGIBLE * row["measured"]["latency_us"]
    ]

    def error(stall: int) -> float:
        return float(sum(abs(np.log((cycles + stall * number) / found)) for cycles, number, found in points if cycles))

    return min(range(0, 257, 4), key=error)


def over_bound(row: Row) -> float:
    """Measured latency over the time of the busiest engine."""
    return float(row["measured"]["latency_us"] / max(row["simulated"]["busy_us"].values()))


def fit(rows: list[Row]) -> dict[str, float]:
    """The constants, from the first half, and measured / modelled - 1 on the second."""
    first, second = halves(rows)
    overlap = round(median(over_bound(row) for row in first), 2)
    errors = sorted(over_bound(row) / overlap - 1 for row in second)
    fitted = sorted(over_bound(row) / overlap - 1 for row in first)
    return {
        "stall_cycles": stall_cycles(first),
        "overlap": overlap,
        "low": round(errors[0], 2),
        "high": round(errors[-1], 2),
        "median": round(median(errors), 2),
        "fitted_low": round(fitted[0], 2),
        "fitted_high": round(fitted[-1], 2),
    }


# ---- the table
def total(figures: dict[str, Any]) -> int:
    """HBM bytes read and written."""
    return int(figures["hbm_read_bytes"] + figures["hbm_write_bytes"])


def difference(row: Row) -> float:
    """Simulated over measured HBM bytes, less one."""
    return total(row["simulated"]) / total(row["measured"]) - 1


def traffic(rows: list[Row]) -> str:
    """HBM bytes and spills of every kernel, measured and simulated."""
    keys = ("hbm_read_bytes", "hbm_write_bytes", "spill_save_bytes", "spill_reload_bytes")
    head = ["kernel", *(f"{name} MB, measured / simulated" for name in ("read", "written", "saved", "reloaded"))]
    body = [
        [
            row["kernel"],
            *(f"{row['measured'][k] / 1e6:.1f} / {row['simulated'][k] / 1e6:.1f}" for k in keys),
            f"{difference(row):+.1%}",
        ]
        for row in rows
    ]
    return markdown([*head, "read + written"], body)


def times(rows: list[Row]) -> str:
    """Latency and engine activity of every kernel, measured and modelled."""
    fitted = [row["kernel"] for row in halves(rows)[0]]
    body = []
    for row in rows:
        real, ours = row["measured"], row["simulated"]
        busiest = max(ours["busy_us"], key=lambda engine: ours["busy_us"][engine])
        active = [f"{real['busy_us'][e] / 1e3:.2f} / {ours['busy_us'][e] / 1e3:.2f}" for e in ("scalar", "vector")]
        latency = f"{real['latency_us'] / 1e3:.2f} / {ours['modelled_latency_us'] / 1e3:.2f}"
        off = real["latency_us"] / ours["modelled_latency_us"] - 1
        body.append([row["kernel"], "fitted on" if row["kernel"] in fitted else "predicted", *active, busiest, latency])
        body[-1].append(f"{off:+.0%}")
    engines = [f"{name} Engine ms, measured / modelled" for name in ("Scalar", "Vector")]
    return markdown(
        ["kernel", "", *engines, "busiest, modelled", "latency ms, measured / modelled", "measured over modelled"], body
    )


def summary(rows: list[Row]) -> str:
    """What the fit says, in words."""
    found, near = fit(rows), sum(abs(difference(row)) <= 0.05 for row in rows)
    return (
        f"{near} of {len(rows)} kernels are within 5 % of the measured HBM bytes. Fitted on the kernels marked so: "
        f"{found['stall_cycles']} stall cycles, overlap {found['overlap']}. On the predicted half the measured latency "
        f"differs from the modelled one by {found['low']:+.0%} to {found['high']:+.0%} (median "
        f"{found['median']:+.0%}), on the fitted half {found['fitted_low']:+.0%} to {found['fitted_high']:+.0%}."
    )


def markdown(head: list[str], body: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def rendered(page: str, rows: list[Row]) -> str:
    """The page with its marked parts replaced."""
    for name, part in (("summary", summary(rows)), ("traffic", traffic(rows)), ("times", times(rows))):
        start, end = f"<!-- nkibench: {name} -->\n", "<!-- end -->"
        if page.count(start) != 1:
            raise SystemExit(f"{PAGE.name} has {page.count(start)} markers for {name}, expected 1")
        before, after = page.split(start)
        page = before + start + part + "\n" + end + after.split(end, 1)[1]
    return page


# ---- the plot
def plot(rows: list[Row], path: Path) -> None:
    """Simulated against measured HBM bytes, modelled against measured latency, both logarithmic."""
    figure = new_figure(11, 5)
    pairs = (
        ("HBM MB", [(total(r["measured"]) / 1e6, total(r["simulated"]) / 1e6) for r in rows]),
        (
            "latency ms",
            [(r["measured"]["latency_us"] / 1e3, r["simulated"]["modelled_latency_us"] / 1e3) for r in rows],
        ),
    )
    for place, (what, points) in enumerate(pairs, 1):
        axes = figure.add_subplot(1, 2, place)
        ends = [0.8 * min(map(min, points)), 1.25 * max(map(max, points))]
        axes.plot(ends, ends, color="0.7", linewidth=1)
        for row, (x, y) in zip(rows, points, strict=True):
            axes.plot(x, y, "o", color="tab:blue" if row in halves(rows)[1] else "tab:orange")
            axes.annotate(row["kernel"], (x, y), textcoords="offset points", xytext=(5, -3), fontsize=6)
        axes.set(xscale="log", yscale="log", xlabel=f"{what}, measured on trn1", ylabel=f"{what}, simulated")
    save(figure, path)


def write_page(rows: list[Row]) -> None:
    """docs/nkibench.png and the marked parts of docs/simulator.md."""
    PAGE.write_text(rendered(PAGE.read_text(), rows))
    plot(rows, PLOT)
    print(f"{PAGE.relative_to(ROOT)} and {PLOT.relative_to(ROOT)} written")
