"""Which calibration text, and how many tokens of it: perplexity at ratio 0.20 on four texts.

    python benchmarks/calibration.py --model SMOLLM2 --work DIR --sources DIR --name NAME --text FILE [--samples N]
    python benchmarks/calibration.py --model SMOLLM2 --sources DIR --name dense

Appends one row a text to benchmarks/data/calibration.jsonl; accuracy.py --figures makes the table. The four texts serve
this choice and that of the best step of recover.py; `law` is scored by unseen.py, too. None is in the tables of
accuracy.py or copied here. --sources holds, unpacked, the source archives gensim-4.3.3 and wordcloud-1.9.4 of PyPI and,
as `fortunes`, the Debian package fortunes-min 1:1.99.1-7.3. With --in-domain the text is `pydoc` instead, which is of
the same kind as the docstrings of benchmarks/recover.py.
"""

from __future__ import annotations

import argparse
import bz2
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import accuracy

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "data" / "calibration.jsonl"
WINDOW, WINDOWS, RATIO = 512, 8, 0.20
WIKI = "gensim-4.3.3/gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
EXAMPLES = "wordcloud-1.9.4/examples"
METHODS: dict[str, dict] = {
    "default": {"block": 128},
    "no-refit": {"block": 128, "refit": False},
    "no-drop": {"block": 128, "drop": False, "refit": False},
    "scaled": {"block": 128, "scale": "builtin-mixed"},
}


def wiki(sources: Path) -> str:
    """The first six paragraphs of prose of every long article, without markup."""
    articles = []
    for text in re.findall(r"<text[^>]*>(.*?)</text>", bz2.decompress((sources / WIKI).read_bytes()).decode(), re.S):
        if len(text) < 20000:
            continue
        for name, char in {"lt": "<", "gt": ">", "quot": '"', "amp": "&", "nbsp": " "}.items():
            text = text.replace(f"&{name};", char)
        text = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>|<math.*?</math>", "", text, flags=re.S)
        for _ in range(5):  # innermost templates and tables first
            text = re.sub(r"\{\{[^{}]*\}\}|\{\|[^{}]*\|\}", "", text)
        text = re.sub(r"\[\[(?:File|Image|Category)[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]", "", text)
        text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
        text = re.sub(r"'{2,}|<[^>]*>|\[https?://\S*\s*([^\]]*)\]", r"\1", text)
        prose = [line.strip() for line in text.split("\n")]
        articles.append("\n\n".join([line for line in prose if len(line) > 200 and line[0] not in "*|{!:;=#"][:6]))
    return "\n\n".join(articles)


def law(sources: Path) -> str:
    """The constitution of the United States."""
    return (sources / EXAMPLES / "constitution.txt").read_text()


def texts(sources: Path) -> dict[str, str]:
    novel = (sources / EXAMPLES / "alice.txt").read_text()
    sayings = (sources / "fortunes" / "usr/share/games/fortunes/literature").read_text()
    return {
        "wiki": wiki(sources),
        "novel": novel[novel.index("CHAPTER I") :],
        "law": law(sources),
        "sayings": sayings.replace("\n%\n", "\n\n"),
    }


def compress(args: argparse.Namespace) -> Path:
    import nxdi_svd_plugin
    from nxdi_svd_plugin.recipe import from_dict

    output = args.work / f"{args.name}-{args.method}-{args.samples}"
    shutil.rmtree(output, ignore_errors=True)
    calibration = {"text": str(args.text), "samples": args.samples}
    method = {"recipe": "default", "ratio": RATIO, "dtype": "bfloat16", **METHODS[args.method]}
    recipe = from_dict({**method, "calibration": calibration})
    nxdi_svd_plugin.compress(args.model, output, recipe, device=args.device, progress=False)
    return output


def measured(directory: Path, contents: dict[str, str], windows: int) -> list[dict]:
    """Perplexity on the first windows of every text, weights and products in bfloat16."""
    import torch

    from nxdi_svd_plugin.evaluate.perplexity import measure, token_ids
    from nxdi_svd_plugin.modeling.load import load_model
    from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer

    model, tokenizer, found = load_model(directory, dtype=torch.bfloat16).eval(), load_tokenizer(directory), []
    for name, content in contents.items():
        result = measure(model, token_ids(tokenizer, content, WINDOW * windows), WINDOW)
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        found.append({"on": name, "perplexity": result.perplexity, "predictions": result.tokens, "on_sha256": sha256})
    return found


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="SmolLM2 as demo/smollm2.py writes it")
    parser.add_argument("--sources", type=Path, required=True, help="the unpacked packages")
    parser.add_argument("--name", required=True, help="of the calibration text in the table; dense: no compression")
    parser.add_argument("--text", type=Path, help="the calibration text")
    parser.add_argument("--samples", type=int, default=56)
    parser.add_argument("--method", choices=tuple(METHODS), default="default")
    parser.add_argument("--directory", type=Path, help="what this method, text and samples made, to score it alone")
    parser.add_argument("--work", type=Path, help="where the compressed directory goes")
    parser.add_argument("--in-domain", action="store_true", help="score pydoc instead of the four, as accuracy.py does")
    parser.add_argument("--device", default="cpu", help="that compresses; texts are measured on the CPU")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from nxdi_svd_plugin.texts import HELDOUT, read_text

    row: dict = {"name": args.name, "model": "SmolLM2-135M-Instruct", "window": WINDOW, "dtype": "bfloat16"}
    row |= {"torch": torch.__version__, "measured": "CPU"}
    directory = args.model
    if args.name != "dense":
        row |= {"method": args.method, "ratio": RATIO, "samples": args.samples, "tokens": WINDOW * args.samples}
        row["compressed_on"] = torch.cuda.get_device_name() if args.device != "cpu" else "CPU"
        row["text_sha256"] = hashlib.sha256(args.text.read_bytes()).hexdigest()
        directory = args.directory or compress(args)
        row["cpu_seconds"] = json.loads((directory / "report.json").read_text())["cost"]["cpu_seconds"]
    contents = {"pydoc": read_text(HELDOUT).content} if args.in_domain else texts(args.sources)
    row["in_domain"] = args.in_domain
    found = measured(directory, contents, accuracy.WINDOWS if args.in_domain else WINDOWS)
    with open(ROWS, "a") as file:
        file.writelines(json.dumps({**row, **each}) + "\n" for each in found)


if __name__ == "__main__":
    main()
