"""Tokens per second of compressed models beside the dense one on this CPU, one thread, bfloat16.

    python benchmarks/speed.py --dense SMOLLM2 --models DIR/default-0.2 DIR/no-drop-0.2 DIR/pair-0.2

The directories are those that benchmarks/accuracy.py made. One row a model goes to benchmarks/data/speed.jsonl: the
median of REPEATS forward passes over one window of WINDOW tokens, models in turn so that all see the same machine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import time
from pathlib import Path
from typing import Any

from accuracy import sizes
from compress import processor

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "data" / "speed.jsonl"
WINDOW, REPEATS = 512, 15


def seconds(model: Any, ids: Any) -> float:
    """Of one forward pass."""
    start = time.perf_counter()
    model(input_ids=ids, use_cache=False)
    return time.perf_counter() - start


def main() -> None:
    """Measure all models and append their rows."""
    import torch

    from nxdi_svd_plugin.modeling.load import load_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, required=True, help="SmolLM2 as demo/smollm2.py writes it")
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    models = {path: load_model(path, dtype=torch.bfloat16).eval() for path in (args.dense, *args.models)}
    ids = torch.randint(0, 49152, (1, WINDOW), generator=torch.Generator().manual_seed(0))
    taken: dict[Path, list[float]] = {path: [] for path in models}
    with torch.no_grad():
        for path in list(models) * (REPEATS + 1):
            taken[path].append(seconds(models[path], ids))
    for path, found in taken.items():
        method, _, ratio = path.name.rpartition("-")
        row = {"method": method, "ratio": float(ratio)} if path != args.dense else {"method": "dense", "ratio": 0.0}
        row |= {"model": "SmolLM2-135M-Instruct", **sizes(path), "window": WINDOW, "dtype": "bfloat16", "threads": 1}
        row |= {"tokens_per_second": round(WINDOW / statistics.median(found[1:]), 1), "machine": processor()}
        row |= {"torch": torch.__version__, "date": datetime.date.today().isoformat()}
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row))


if __name__ == "__main__":
    main()
