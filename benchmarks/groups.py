"""What one core holds, moves and computes of an MLP: as many groups as cores, the paper's layout, dense.

    python benchmarks/groups.py            # counts everything again: benchmarks/data/groups.jsonl
    python benchmarks/groups.py --tables   # only puts the tables into docs/kernels.md and model_configs/README.md

Ranks are Eq. 5's. The kernels run on the simulator, which counts HBM bytes and tensor-engine cycles; no device runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from kernel_tables import markdown, replaced  # noqa: E402

from nxdi_svd_plugin.checkpoint.source import SourceConfig, read_config  # noqa: E402
from nxdi_svd_plugin.compress.plan.ranks import decide_ranks, reached, stored_parameters  # noqa: E402
from nxdi_svd_plugin.errors import RecipeError  # noqa: E402
from nxdi_svd_plugin.hardware import PARTITIONS, tiles  # noqa: E402
from nxdi_svd_plugin.kernels.measure import layer as core  # noqa: E402
from nxdi_svd_plugin.recipe import Recipe  # noqa: E402
from nxdi_svd_plugin.stored.cores import neurons_of, sharing  # noqa: E402
from nxdi_svd_plugin.stored.kernel_fit import KernelFit, kernel_fit  # noqa: E402
from nxdi_svd_plugin.stored.layers import Mlp  # noqa: E402
from nxdi_svd_plugin.stored.projection import LowRank  # noqa: E402
from nxdi_svd_plugin.stored.runs import length  # noqa: E402

DATA = ROOT / "benchmarks" / "data" / "groups.jsonl"
PAGE, READER = ROOT / "docs" / "kernels.md", ROOT / "model_configs" / "README.md"
CONFIGS = sorted((ROOT / "model_configs").glob("*.yaml"))
RATIOS, DEGREES, FORMS = (0.05, 0.10, 0.20), (1, 2, 4, 8), ("pair", "interpolative")
DECODE, PREFILL = (1, 8), 2048
Row = dict[str, Any]


def shapes(path: Path) -> SourceConfig:
    """The shapes of a model config."""
    with tempfile.TemporaryDirectory() as folder:
        content = yaml.safe_load(path.read_text())["model"]["config"]
        (Path(folder) / "config.json").write_text(json.dumps(content))
        return read_config(folder)


def layer_of(config: SourceConfig, form: str, ratio: float, groups: int) -> tuple[Mlp, float]:
    """A layer with Eq. 5's rank, and the ratio of it."""
    recipe = Recipe(form=form, ratio=ratio, tp_degree=groups)
    layers = decide_ranks(config, recipe)
    return layers[0], reached(config, recipe, stored_parameters(config, layers)).mlp


def rank_of(mlp: Mlp) -> int:
    """The rank that all projections have."""
    (rank,) = {p.rank for _, p in mlp.items() if isinstance(p, LowRank)}
    return rank


def parameters_of_a_core(config: SourceConfig, mlp: Mlp, tp: int) -> int:
    """Numbers of the MLP's low-rank projections on one core, padding included."""
    shared, neurons = sharing(mlp.groups, tp), neurons_of(mlp, tp)
    part, total = neurons // shared.groups, 0
    for p in (p for _, p in mlp.items() if isinstance(p, LowRank)):
        total += shared.groups * (p.rank // p.groups) * (config.hidden + part - length(p.pivots) // shared.cores)
    return total


def row_of(path: Path, config: SourceConfig, form: str, ratio: float, tp: int, groups: int) -> Row | None:
    """One row; None where the form has no rank at that ratio, or goes on no such degree."""
    try:
        mlp, got = layer_of(config, form, ratio, groups)
    except RecipeError:
        return None
    fit, layer = kernel_fit(mlp, tp), core.on_core(config.hidden, config.intermediate, mlp, tp)
    found, dense = ({n: cost(n) for n in (*DECODE, PREFILL)} for cost in costs(layer, fit))
    return {
        "model": path.stem,
        "form": form,
        "ratio": ratio,
        "reached": round(got, 4),
        "tp": tp,
        "groups": groups,
        "rank_of_a_group": rank_of(mlp) // groups,
        "kernels": core.kernels_of(layer, fit, PREFILL),
        "parameters": parameters_of_a_core(config, mlp, tp),
        "dense_parameters": 3 * config.hidden * config.intermediate // tp,
        **{f"hbm_bytes_{n}": found[n].hbm_bytes for n in DECODE},
        **{f"dense_hbm_bytes_{n}": dense[n].hbm_bytes for n in DECODE},
        f"pe_cycles_{PREFILL}": found[PREFILL].pe_cycles,
        f"dense_pe_cycles_{PREFILL}": dense[PREFILL].pe_cycles,
        f"transpose_cycles_{PREFILL}": PREFILL * tiles(config.hidden),
    }


def costs(layer: core.Layer, fit: KernelFit) -> tuple[Callable[[int], core.Cost], Callable[[int], core.Cost]]:
    return (lambda n: core.fused(layer, fit, n)), (lambda n: core.dense(layer, n))


def count() -> Iterator[Row]:
    for path in CONFIGS:
        config = shapes(path)
        for form in FORMS:
            for ratio in RATIOS:
                for tp in DEGREES:
                    for groups in dict.fromkeys((tp, 1)):
                        if row := row_of(path, config, form, ratio, tp, groups):
                            yield row


def load() -> list[Row]:
    return [json.loads(line) for line in DATA.read_text().splitlines()]


def over_dense(row: Row, key: str) -> float:
    """A number of a row over that of the dense MLP."""
    return row[key] / row[f"dense_{key}"]


MEASURES = {
    "parameters": "numbers held",
    "hbm_bytes_1": "bytes, S = 1",
    "hbm_bytes_8": "bytes, S = 8",
    f"pe_cycles_{PREFILL}": f"cycles, S = {PREFILL}",
}


def ratio_table(rows: list[Row], ratio: float) -> str:
    """Everything over dense: pairs and interpolative factors in as many groups as cores, the paper's layout (pairs)."""
    kinds = {"pair": ("pair", False), "interpolative": ("interpolative", False), "paper's layout": ("pair", True)}
    body = []
    for row in (r for r in rows if r["ratio"] == ratio):
        whole = row["groups"] == 1
        names = [n for n, (form, paper) in kinds.items() if form == row["form"] and (whole if paper else not whole)]
        if row["tp"] > 1 and names:
            cells = [f"{over_dense(row, key):.3f}" for key in MEASURES]
            body.append([row["model"], row["tp"], names[0], row["rank_of_a_group"], f"{row['reached']:.3f}", *cells])
    return markdown(["model", "tp", "factors", "rank of a group", "ratio reached", *MEASURES.values()], body)


PRODUCTS, FREE, X_ONLY, BOTH = "products alone", "dense transposes nothing", "dense: X", "dense: X, down's input"
"""What is counted of the tensor engine: without transposes on either side, or beside dense kernels that do these."""


def transposes(row: Row) -> tuple[int, int]:
    """Tensor-engine cycles that transpose X [S, H], and the input of down [S, I / tp], once: 128 for each 128 x 128."""
    hidden = PARTITIONS * row[f"transpose_cycles_{PREFILL}"] // PREFILL
    return row[f"transpose_cycles_{PREFILL}"], PREFILL * tiles(row["dense_parameters"] // (3 * hidden))


def cycles(row: Row) -> dict[str, float]:
    """Tensor-engine cycles over (1 - ratio reached) x dense's, by what the dense kernel transposes. Ours has X's."""
    ours, dense = row[f"pe_cycles_{PREFILL}"], row[f"dense_pe_cycles_{PREFILL}"]
    x, inner = transposes(row)
    terms = {
        FREE: (ours, dense),
        X_ONLY: (ours, dense + x),
        BOTH: (ours, dense + x + inner),
        PRODUCTS: (ours - x, dense),
    }
    return {name: mine / theirs / (1 - row["reached"]) for name, (mine, theirs) in terms.items()}


def bounds(rows: list[Row]) -> str:
    """The largest figure of all rows with as many groups as cores, over (1 - ratio reached) x dense's, by degree."""
    body = []
    for tp in DEGREES:
        own = [row for row in rows if row["tp"] == row["groups"] == tp]
        cells = [max(over_dense(row, key) / (1 - row["reached"]) for row in own) for key in list(MEASURES)[:-1]]
        found = [max(cycles(row)[name] for row in own) for name in (FREE, X_ONLY, BOTH, PRODUCTS)]
        most = max(over_dense(row, key) for row in own for key in MEASURES)
        body.append([tp, len(own), *(f"{cell:.4f}" for cell in (*cells, *found, most))])
    counted = [f"cycles, S = {PREFILL}; {FREE}", X_ONLY, BOTH, PRODUCTS]
    heads = ["tp = groups", "rows", *list(MEASURES.values())[:-1], *counted, "largest over dense itself"]
    return markdown(heads, body)


def core_sizes() -> str:
    """MiB of MLP weights on one core at tp 2, from model_configs/."""
    body = []
    for path in CONFIGS:
        expected = yaml.safe_load(path.read_text())["expected"]
        for i, ratio in enumerate(RATIOS):
            cells = [expected[key][i]["mlp_mib_per_core"] for key in ("interpolative", "pair", "paper_layout")]
            body.append([path.stem, f"{ratio:.2f}", expected["dense_mlp_mib_per_core"], *cells])
    return markdown(["model", "ratio asked", "dense", "interpolative", "pair", "paper's layout"], body)


def pages(rows: list[Row]) -> dict[Path, dict[str, str]]:
    """The tables of every page."""
    git = ", ".join(sorted({row["git"] for row in rows}))
    made = {f"groups-{ratio:.2f}": ratio_table(rows, ratio) for ratio in RATIOS}
    made |= {"groups-bounds": bounds(rows), "groups-rows": f"Rows: {rows[0]['source']}; commit {git}, bfloat16."}
    return {PAGE: made, READER: {"core-sizes": core_sizes()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", action="store_true", help="only make the tables")
    if not parser.parse_args().tables:
        git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
        with open(DATA, "w") as file:
            for row in count():
                file.write(json.dumps({**row, "source": "simulated, no device run", "git": git.stdout.strip()}) + "\n")
                file.flush()
    for path, made in pages(load()).items():
        path.write_text(replaced(path.read_text(), made))


if __name__ == "__main__":
    main()
