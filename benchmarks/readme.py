"""The tables of README.md and the figures in the prose of README.md and CHANGELOG.md out of the committed rows, and the
two pictures of README.md out of the shapes of Llama-3.2-1B.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from accuracy_tables import KINDS, LAW, OUTSIDE, UNTRAINED, after, on_unseen, refitted, relative, usual  # noqa: E402
from groups import over_dense  # noqa: E402
from kernel_tables import markdown, replaced  # noqa: E402
from nkibench_tables import difference, fit  # noqa: E402

from nxdi_svd_plugin.recipe import DEFAULT_SAMPLES  # noqa: E402

DATA, PAGE, DOCS = ROOT / "benchmarks" / "data", ROOT / "README.md", ROOT / "docs"
CHANGES = ROOT / "CHANGELOG.md"
FIGURE = re.compile(r"(<!-- figure: (\w+) -->).*?(<!-- end -->)")
MODEL, RATIO, TP = "llama-3.2-1b", 0.10, 2
METHODS = ("default", "svd-llm")
Row = dict[str, Any]


def rows_of(name: str) -> list[Row]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


def core_row(form: str = "interpolative", ratio: float = RATIO, groups: int = TP) -> Row:
    """One of two cores of MODEL."""
    wanted = {"model": MODEL, "form": form, "ratio": ratio, "tp": TP, "groups": groups}
    return next(row for row in rows_of("groups") if all(row[key] == value for key, value in wanted.items()))


def headline() -> str:
    """What one gets, a number a row."""
    found, core = relative(rows_of("accuracy")), core_row()
    worst = {name: max(found[name, RATIO, text][1] for text in OUTSIDE) for name in ("default", "svd-llm")}
    unseen = on_unseen(rows_of("unseen"))[RATIO, UNTRAINED]
    others = max(worst["default"], *(value for text, value in unseen.items() if text != LAW))
    measured = "measured: SmolLM2-135M, CPU"
    simulated = f"simulated: Llama-3.2-1B, tp {TP}, {core['reached']:.3f} saved"
    body = [
        ["perplexity, worst of five unseen texts", f"{others:.2f}", "x dense", measured],
        ["the same on the US constitution", f"{unseen[LAW]:.2f}", "x dense", measured],
        ["by the paper's whitening, worse of two", f"{worst['svd-llm']:.2f}", "x dense", measured],
        ["MLP weights of a core", f"{over_dense(core, 'parameters'):.3f}", "x dense", simulated],
        ["HBM bytes of a decoded token", f"{over_dense(core, 'hbm_bytes_1'):.3f}", "x dense", simulated],
        ["tensor-engine cycles, 2048 tokens", f"{over_dense(core, 'pe_cycles_2048'):.3f}", "x dense", simulated],
        ["tokens per second on trn1", "-", "", "**not run: no Trainium was at hand**"],
    ]
    return markdown([f"at {RATIO:.0%} fewer MLP weights", "number", "unit", "how it is known"], body)


def accuracy() -> str:
    """Perplexity over dense by ratio, the worst of the texts that calibration has not seen."""
    found, unseen, body = relative(rows_of("accuracy")), on_unseen(rows_of("unseen")), []
    for ratio in sorted({ratio for _, ratio, _ in found if ratio}):
        cells = [_worst({text: found.get((name, ratio, text), (0, 0))[1] for text in OUTSIDE}) for name in METHODS]
        trained = _worst({text: after(rows_of("recover"), text).get(ratio, 0) for text in OUTSIDE})
        more = dict(unseen.get((ratio, UNTRAINED), {LAW: 0, "": 0}))
        law = _worst({LAW: more.pop(LAW)})
        body.append([f"{ratio:.2f}", cells[0], trained, cells[1], _worst(more), law])
    heads = ["default recipe (2 groups)", "after `recover`", "the paper's whitening"]
    heads += ["three more texts", "the US constitution"]
    return markdown(["share of MLP weights saved", *heads], body)


def _worst(by_text: dict[str, float]) -> str:
    """The largest, or that it was not measured."""
    return f"{max(by_text.values()):.2f}" if all(by_text.values()) else "-"


def costs() -> str:
    """CPU seconds and memory of a compression, the latest row of each kind."""
    latest = {(row["shape"], row["recipe"], row.get("tp_degree", 1), row["ratio"]): row for row in rows_of("compress")}
    body = [
        [*kind, row["layers"], f"{row['cpu_seconds_per_layer']:.0f}", f"{row['peak_gib']:.1f}", row["date"]]
        for kind, row in sorted(latest.items())
    ]
    heads = ["shape", "recipe", "tp_degree", "ratio", "layers", "CPU seconds a layer", "peak GiB", "measured on"]
    return markdown(heads, body)


def tables() -> dict[str, str]:
    return {"headline": headline(), "accuracy": accuracy(), "costs": costs()}


def perplexities() -> str:
    """The table of the accuracy in a line."""
    found = relative(rows_of("accuracy"))
    ratios = sorted({ratio for _, ratio, _ in found if ratio})
    ours, papers = (
        ", ".join(f"{max(found[name, ratio, text][1] for text in OUTSIDE):.2f}" for ratio in ratios)
        for name in ("default", "svd-llm")
    )
    return f"{ours} at {', '.join(f'{ratio:.2f}' for ratio in ratios)}; the paper's whitening {papers}"


def recovered() -> str:
    """What the last training at 0.20 and 0.30 gave on the worse of the texts that it has not seen."""
    runs: dict[tuple[float, str], Row] = {}
    for row in rows_of("recover"):
        if row.get("text") in OUTSIDE and usual(row) and row.get("own_text") not in KINDS:
            runs[round(row["ratio"], 2), row["text"]] = row
    told = []
    for ratio in (0.20, 0.30):
        worst = [runs[ratio, text] for text in OUTSIDE]
        before, trained = (max(row[key] / row["dense"] for row in worst) for key in ("compressed", "recovered"))
        steps, minutes = worst[0]["best_step"], worst[0]["seconds"] / 60
        how = f"`{worst[0]['settings']['method']}`, {steps} steps, {minutes:.0f} minutes"
        told.append(f"at {ratio:.2f} from {before:.2f} to {trained:.2f} ({how})")
    return f"{'; '.join(told)} (one thread of this CPU, distillation from the dense model)"


def kinds() -> str:
    """What training on text of the kinds that are scored gave, by the worst of the five texts; the last such text."""
    found, unseen = rows_of("recover"), on_unseen(rows_of("unseen"))
    training = [row["own_text"] for row in found if row.get("own_text") in KINDS][-1]
    worst = []
    for ratio in (0.20, 0.30):
        others = (value for text, value in unseen[ratio, training].items() if text != LAW)
        worst.append(f"{max(*others, *(after(found, text, training)[ratio] for text in OUTSIDE)):.2f} at {ratio:.2f}")
    return f"on other documents of the kinds scored, by people, {' and '.join(worst)} on the worst of five texts"


def second() -> str:
    """The default recipe on the second model, by text."""
    rows = rows_of("second_model")
    dense = {row["text"]: row["perplexity"] for row in rows if not row["ratio"]}
    last = [row for row in rows if row["ratio"]][-len(dense) :]
    found = " and ".join(f"{row['perplexity'] / dense[row['text']]:.2f} on {row['text']}" for row in last)
    kind = "" if refitted(last[0]) else ", without a refit"
    return f"{last[0]['model']} at {last[0]['ratio']:.2f}{kind}: x {found}"


def minutes() -> str:
    """What the make targets took, by the last row of each."""
    last = {row["command"]: row for row in rows_of("minutes")}
    found = [f"`{name}` took {row['wall_seconds'] / 60:.1f} minutes" for name, row in sorted(last.items())]
    return f"{' and '.join(found)} ({last['make demo']['machine']}, {last['make demo']['date']})"


def domain() -> str:
    """What text of the kind that is served takes off, in domain."""
    found = {row["name"]: row["perplexity"] for row in rows_of("calibration") if row.get("in_domain")}
    shipped, own = (found[name] / found["dense"] for name in ("shipped", "docstrings of Python"))
    return f"calibrated on docstrings, `pydoc` is x {own:.2f} at 0.20, not {shipped:.2f}"


def encyclopedia() -> str:
    """The worst of the other texts, one of the four that the calibration text was chosen by."""
    rows = [row for row in rows_of("calibration") if row["on"] == "wiki"]
    dense = next(row["perplexity"] for row in rows if row["name"] == "dense")
    kind = {"name": "shipped", "method": "default", "samples": DEFAULT_SAMPLES}
    row = next(row for row in rows if all(row.get(key) == value for key, value in kind.items()))
    return f"An encyclopedia costs x {row['perplexity'] / dense:.2f} at {row['ratio']:.2f}"


def figures() -> dict[str, str]:
    """What stands at the marks in the prose of README.md and CHANGELOG.md."""
    rows = rows_of("nkibench")
    found, near = fit(rows), sum(abs(difference(row)) <= 0.05 for row in rows)
    low, high = min(found["low"], found["fitted_low"]), max(found["high"], found["fitted_high"])
    return {
        "perplexities": perplexities(),
        "minutes": minutes(),
        "recovered": recovered(),
        "kinds": kinds(),
        "second": second(),
        "domain": domain(),
        "encyclopedia": encyclopedia(),
        "kernels": f"{near} of {len(rows)}",
        "band": f"{100 * low:+.0f} to {100 * high:+.0f} %",
    }


def with_figures(page: str) -> str:
    """The page with the figures of the rows at its marks."""
    made = figures()
    return FIGURE.sub(lambda mark: mark[1] + made[mark[2]] + mark[3], page)


def forms_picture(path: Path) -> None:
    """One gate projection as it is stored, to scale: dense, a pair, interpolative in two groups."""
    hidden, width, pair = 2048, 8192, core_row("pair", RATIO, 1)["rank_of_a_group"]
    rank, part = core_row()["rank_of_a_group"], width // TP
    figure, axes = _figure(3, (11, 1.9))
    _boxes(axes[0], "dense: H x I", [(0, 0, width, hidden, "W", 0)])
    _boxes(axes[1], f"pair: rank {pair}", [(0, 0, pair, hidden, "U", 0), (pair + 300, 0, width, pair, "V", 1)])
    boxes = []
    for group in range(TP):
        left = group * (part + 700)
        boxes += [(left, 0, rank, hidden, "near", 0), (left + rank + 150, 0, part - rank, rank, "C", 1)]
    _boxes(axes[2], f"interpolative, {TP} groups: rank {rank} each", boxes)
    figure.suptitle("One gate projection of Llama-3.2-1B, areas to scale (numbers stored)", fontsize=9)
    _save(figure, path)


def cores_picture(path: Path) -> None:
    """MiB of MLP weights on each of two cores: what is its share, and what both hold."""
    layers, hidden, width = 16, 2048, 8192
    paper, ours = core_row("pair", 0.05, 1), core_row("interpolative", 0.05)
    mib, whole = layers * 2 / 2**20, 3 * paper["rank_of_a_group"] * hidden
    bars = [
        ("dense", 3 * hidden * width / TP, 0),
        ("paper's layout\n(pairs, 0.05)", paper["parameters"] - whole, whole),
        ("two groups\n(interpolative, 0.05)", ours["parameters"], 0),
    ]
    figure, (axis,) = _figure(1, (6, 3.2))
    for at, (_, share, twice) in enumerate(bars):
        for core in (0, 1):
            x = at * 3 + core
            axis.bar(x, share * mib, color="#4878a8", width=0.9)
            axis.bar(x, twice * mib, bottom=share * mib, color="#d08050", width=0.9)
            axis.text(x, (share + twice) * mib + 10, f"{(share + twice) * mib:.0f}", ha="center", fontsize=8)
    axis.set_xticks([at * 3 + 0.5 for at in range(len(bars))], [name for name, *_ in bars], fontsize=8)
    axis.set_ylabel("MiB of MLP weights on a core")
    axis.set_title("Llama-3.2-1B, two cores; orange: whole on both", fontsize=9)
    axis.set_ylim(0, 1000)
    _save(figure, path)


def _figure(columns: int, size: tuple[float, float]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=size, squeeze=False)
    return figure, list(axes[0])


def _boxes(axis: Any, title: str, boxes: Sequence[tuple[float, float, float, float, str, int]]) -> None:
    from matplotlib.patches import Rectangle

    for left, top, width, height, name, colour in boxes:
        face, said = ("#a8c4e0", "#f0c8a0")[colour], f"{name}\n{height:.0f} x {width:.0f}"
        axis.add_patch(Rectangle((left, -top - height), width, height, facecolor=face, edgecolor="k"))
        axis.text(left + width / 2, -top - height / 2, said, ha="center", va="center", fontsize=6)
    axis.set(xlim=(-100, 10500), ylim=(-2300, 200), aspect="equal", title=title)
    axis.title.set_fontsize(8)
    axis.axis("off")


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    PAGE.write_text(with_figures(replaced(PAGE.read_text(), tables())))
    CHANGES.write_text(with_figures(CHANGES.read_text()))
    forms_picture(DOCS / "forms.png")
    cores_picture(DOCS / "cores.png")
