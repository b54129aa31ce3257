"""Puts the tables made of benchmarks/data/kernels.jsonl between the `<!-- table: ... -->` marks of docs/kernels.md."""

import json
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.hardware import CLOCK_HZ, MODEL_BAND, PARTITIONS

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "data" / "kernels.jsonl"
PAGE = ROOT / "docs" / "kernels.md"
Row = dict[str, Any]
PAPER_TABLE_1 = {"sequential": (85.90, 298.66), "naive": (343.60, 3140.42)}
PAPER_TABLE_3 = {
    128: (31.25, 124.12, 19.54, 0.0),
    256: (16.02, 240.94, 51.69, 0.0),
    512: (11.02, 455.10, 80.07, 0.0),
    1024: (10.99, 819.17, 90.05, 0.0),
    2048: (11.07, 1280.50, 96.35, 29.19 + 10.53),
    4096: (12.50, 512.95, 98.96, 931.0 + 266.0),
}
"""Total time in ms, flop/B, SBUF in % of 192 KiB, spill reloads and saves in MiB."""
PAPER_TABLE_2 = {
    "dense": (57.89, 9.93, 78.52, 64.09, 2.96, 68.01),
    "unfused": (37.47, 6.52, 81.28, 65.24, 2.18, 78.92),
    "xuv_transposed": (27.63, 2.47, 99.21, 85.20, 2.18, 22.55),
}
"""Latency in ms, traffic in GB, tensor engine active in %, MFU in %, TFLOP, transpose GFLOP."""
PEAK_FLOPS = 2 * PARTITIONS * PARTITIONS * CLOCK_HZ["pe"]
"""Of the tensor engine in bf16, a second."""


def load(path: Path = ROWS) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def markdown(head: list[str], body: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def table_1(rows: list[Row]) -> str:
    body = []
    for row in (r for r in rows if r["table"] == "table1"):
        moved = (row["hbm_bytes"] + row.get("transpose_pass_bytes", 0)) / 1e6
        flops, paper = row["matmul_flops"] / 1e9, PAPER_TABLE_1.get(row["variant"])
        theirs = [f"{paper[0]:.2f}", f"{paper[1]:.0f}", f"{moved / paper[1] - 1:+.1%}"] if paper else ["", "", ""]
        body.append([row["variant"], f"{flops:.2f}", theirs[0], f"{moved:.0f}", *theirs[1:]])
    return markdown(["kernel", "GFLOP", "paper", "HBM MB", "paper", "difference"], body)


def by_variant(rows: list[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        if row["table"] == "table2":
            grouped.setdefault(row["variant"], []).append(row)
    return grouped


def table_2(rows: list[Row]) -> str:
    body = []
    for variant, runs in by_variant(rows).items():
        paper = PAPER_TABLE_2.get(variant)
        theirs = [f"{value:.2f}" for value in paper] if paper else [""] * 6
        pairs = zip(_means(runs), theirs, strict=True)
        body.append([variant, *(cell for pair in pairs for cell in pair)])
    ours = ["modelled ms", "HBM GB", "PE busy % (model)", "MFU % (model)", "TFLOP", "transpose GFLOP"]
    return markdown(["kernel", *(cell for head in ours for cell in (head, "paper"))], body)


def _means(runs: list[Row]) -> list[str]:
    """Over the lengths, in the order of PAPER_TABLE_2."""
    keys = ("modelled_latency_us", "hbm_bytes", "matmul_flops", "transpose_flops")
    us, moved, flops, transposes = (sum(run[key] for run in runs) / len(runs) for key in keys)
    busy = sum(run["modelled_us"]["pe"] for run in runs) / len(runs) / us
    used = flops / (us / 1e6) / PEAK_FLOPS
    shares = f"{100 * busy:.1f}", f"{100 * used:.1f}"
    return [f"{us / 1e3:.2f}", f"{moved / 1e9:.2f}", *shares, f"{flops / 1e12:.2f}", f"{transposes / 1e9:.1f}"]


def lengths(rows: list[Row], kernel: str) -> str:
    """Ratios to `kernel`, one orientation of xuv."""
    runs = {(row["variant"], row["tokens"]): row for row in rows if row["table"] == "table2"}
    body = []
    for tokens in sorted({tokens for _, tokens in runs}):
        fused, cells = runs[kernel, tokens], []
        for variant in ("dense", "dense_result_strip", "unfused", "unfused_result_strip"):
            other = runs[variant, tokens]
            keys = ("hbm_bytes", "pe_cycles", "modelled_latency_us")
            cells.append(" / ".join(f"{other[key] / fused[key]:.2f}" for key in keys))
        spill = runs["dense_result_strip", tokens]
        spilled = (spill["spill_save_bytes"] + spill["spill_reload_bytes"]) / 1e9
        body.append([tokens, f"{fused['hbm_bytes'] / 1e9:.3f}", *cells, f"{spilled:.2f}"])
    head = ["S", "xuv GB", "dense", "dense, result strip", "unfused", "unfused, result strip", "result-strip spill GB"]
    return markdown(head, body)


def reached(rows: list[Row]) -> str:
    body = []
    for row in (r for r in rows if r["variant" if "variant" in r else "table"] in ("xuv", "xuv_transposed")):
        if row["table"] != "table2":
            continue
        others = {engine: us for engine, us in row["modelled_us"].items() if engine != "pe"}
        busiest = max(others, key=lambda engine: others[engine])
        body.append(
            [
                "[n, S]" if row["variant"] == "xuv_transposed" else "[S, n]",
                row["tokens"],
                f"{row['hbm_bytes'] / row['least_hbm_bytes']:.4f}",
                row["pe_over_minimum"],
                row["pe_over_minimum_with_transposes"],
                f"{busiest} {others[busiest] / row['modelled_us']['pe']:.2f}",
                f"{row['sbuf_peak_bytes'] / 1024:.1f}",
                row["spill_save_bytes"],
            ]
        )
    head = ["output", "S", "traffic / best", "PE / minimum", "with transposes", "next engine / PE", "SBUF KiB", "spill"]
    return markdown(head, body)


def table_3(rows: list[Row]) -> str:
    body = []
    for row in (r for r in rows if r["table"] == "table3"):
        paper = PAPER_TABLE_3[row["strip"]]
        spilled = (row["spill_save_bytes"] + row["spill_reload_bytes"]) / 2**20
        body.append(
            [
                row["strip"],
                f"{row['modelled_latency_us'] / 1e3:.2f}",
                f"{paper[0]:.2f}",
                row["intensity"],
                row["eq_10"],
                f"{paper[1]:.2f}",
                f"{row['sbuf_peak_bytes'] / 1024:.1f}",
                f"{row['eq_11_bytes'] / 1024:.0f}",
                f"{paper[2] * 1.92:.1f}",
                f"{spilled:.0f}",
                f"{paper[3]:.0f}",
            ]
        )
    head = ["B", "modelled ms", "paper ms", "flop/B", "Eq. 10", "paper", "SBUF KiB", "Eq. 11 KiB", "paper KiB"]
    head += ["spill MiB", "paper MiB"]
    return markdown(head, body)


def mlp(rows: list[Row], tokens: int) -> str:
    body = []
    for row in (r for r in rows if r["table"] == "mlp" and r["tokens"] == tokens):
        reference = row["once_hbm_bytes"] if tokens < 128 else row["least_hbm_bytes"]
        times = row["modelled_us"]
        bound = max(times, key=lambda engine: times[engine])
        strips = ", ".join(f"{count} x {'+'.join(map(str, strip))}" for count, strip in row["strips"])
        body.append(
            [
                row["model"],
                row["tp"],
                row["kernel"],
                row["rank"],
                strips,
                f"{row['hbm_bytes'] / 1e6:.1f}",
                f"{row['hbm_bytes'] / reference:.4f}",
                row["pe_over_minimum_with_transposes"] if tokens >= 128 else row["mean_dma_run_bytes"],
                f"{bound} {times[bound]:.0f}",
            ]
        )
    ratio = "traffic / best" if tokens >= 128 else "traffic / once"
    last = "PE / minimum" if tokens >= 128 else "DMA run B"
    return markdown(["model", "tp", "kernel", "r", "strips", "HBM MB", ratio, last, "busiest, modelled us"], body)


def interpolative(rows: list[Row]) -> str:
    """Prefill and one token side by side: weights beside the pair's, traffic, tensor-engine cycles."""
    body, found = [], [row for row in rows if row["table"] == "interpolative"]
    one = {(row["model"], row["tp"], row["kernel"]): row for row in found if row["tokens"] == 1}
    for row in (r for r in found if r["tokens"] == 2048):
        decode = one[row["model"], row["tp"], row["kernel"]]
        body.append(
            [
                row["model"],
                row["tp"],
                row["kernel"],
                f"{row['rank']} ({row['pair_rank']})",
                f"{row['weight_bytes'] / 1e6:.1f} ({row['pair_weight_bytes'] / 1e6:.1f})",
                f"{row['hbm_bytes'] / 1e6:.1f}",
                f"{row['hbm_bytes'] / row['least_hbm_bytes']:.4f}",
                row["pe_over_minimum_with_transposes"],
                f"{row['pe_cycles'] / row['pair_minimum_pe_cycles']:.3f}",
                f"{decode['hbm_bytes'] / decode['once_hbm_bytes']:.4f}",
            ]
        )
    heads = ["model", "tp", "kernel", "r (pair)", "weights MB (pair)", "HBM MB", "traffic / best", "PE / minimum"]
    return markdown([*heads, "PE / pair's minimum", "one token: traffic / once"], body)


def decode(rows: list[Row], groups: int) -> str:
    """`mlp` beside the calls that it stands for."""
    found = [row for row in rows if row["table"] == "decode" and row["groups"] == groups]
    body = [
        [
            row["model"],
            row["tp"],
            row["rank"],
            row["tokens"],
            f"{row['hbm_bytes'] / 1e6:.1f}",
            f"{row['hbm_bytes'] / row['once_hbm_bytes']:.4f}",
            f"{row['hbm_bytes'] / row['apart']['hbm_bytes']:.3f}",
            f"{row['pe_cycles'] / row['apart']['pe_cycles']:.2f}",
            row["runs"][0],
            row["apart"]["runs"][0],
            f"{row['modelled_latency_us']:.0f}",
        ]
        for row in found
    ]
    heads = ["model", "tp", "r" if groups == 1 else "r of a group", "S", "HBM MB", "traffic / once"]
    heads += ["traffic / apart", "PE / apart", "shortest DMA run B", "apart", "modelled us"]
    return markdown(heads, body)


def several(rows: list[Row]) -> str:
    """`up_gate` and `down` of all groups of a core in one call, beside a call for each; which of the two is taken."""
    body = [
        [
            row["model"],
            row["groups"],
            row["kernel"],
            row["rank"],
            f"{row['hbm_bytes'] / 1e6:.1f}",
            f"{row['apart']['hbm_bytes'] / 1e6:.1f}",
            f"{row['pe_cycles'] / row['apart']['pe_cycles']:.4f}",
            f"{row['modelled_latency_us']:.0f}",
            f"{row['apart']['modelled_latency_us']:.0f}",
            "one call" if row["calls"] == 1 else "a call each",
        ]
        for row in rows
        if row["table"] == "several"
    ]
    heads = ["model", "groups", "kernel", "r of a group", "HBM MB, one call", "a call each", "PE / a call each"]
    return markdown([*heads, "modelled us, one call", "a call each", "taken"], body)


def tables(rows: list[Row]) -> dict[str, str]:
    """Every table by the name of its marker, with the provenance of the rows."""
    return {
        "provenance": "Rows: {source}; version {version}, commit {git}, {dtype}; times modelled, {band}.".format(
            **rows[0], band=MODEL_BAND
        ),
        "table1": table_1(rows),
        "table2": table_2(rows),
        "lengths": lengths(rows, "xuv_transposed"),
        "lengths-plain": lengths(rows, "xuv"),
        "reached": reached(rows),
        "table3": table_3(rows),
        "mlp-2048": mlp(rows, 2048),
        "mlp-1": mlp(rows, 1),
        "mlp-8": mlp(rows, 8),
        "interpolative": interpolative(rows),
        "decode": decode(rows, 1),
        "decode-groups": decode(rows, 2),
        "several": several(rows),
    }


def rendered(page: str, rows: list[Row]) -> str:
    """The page with every table of these rows replaced."""
    return replaced(page, tables(rows))


def replaced(page: str, made: dict[str, str]) -> str:
    """The page with what stands at each of these markers replaced."""
    for name, table in made.items():
        start, end = f"<!-- table: {name} -->\n", "<!-- end -->"
        if page.count(start) != 1:
            raise SystemExit(f"{page.count(start)} markers for table {name}, expected 1")
        before, after = page.split(start)
        page = before + start + table + "\n" + end + after.split(end, 1)[1]
    return page


if __name__ == "__main__":
    PAGE.write_text(rendered(PAGE.read_text(), load()))
    print(f"tables of {PAGE.relative_to(ROOT)} written")
