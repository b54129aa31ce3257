"""Wall seconds of `make demo` and `make test`, after what they install and download; run on an idle machine.

    python benchmarks/minutes.py demo test

One row a command goes to benchmarks/data/minutes.jsonl, whose last row is what README.md says.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import time
from pathlib import Path

from compress import processor

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "benchmarks" / "data" / "minutes.jsonl"
BEFORE = {"demo": ["make", "install"], "test": ["make", "install", "compat"]}


def measure(target: str) -> dict[str, object]:
    """The row of one make target, which has to succeed."""
    subprocess.run(BEFORE[target], cwd=ROOT, check=True)
    start = time.monotonic()
    subprocess.run(["make", target], cwd=ROOT, check=True)
    return {
        "command": f"make {target}",
        "wall_seconds": round(time.monotonic() - start),
        "machine": f"{processor()}, {os.cpu_count()} cores, idle",
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip(),
        "date": datetime.date.today().isoformat(),
    }


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="+", choices=BEFORE)
    for target in parser.parse_args().targets:
        row = measure(target)
        with ROWS.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row))


if __name__ == "__main__":
    main()
