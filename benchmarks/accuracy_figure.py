"""docs/accuracy.png: perplexity over dense and task accuracy against ratio, as the paper's Figures 6 and 7."""

from __future__ import annotations

from pathlib import Path

from accuracy_tables import GOALS, NAMES, TASK_NAMES, after, average, relative, scored


def figure(rows: list[dict], recovered: list[dict], answered: list[dict], path: Path) -> None:
    """One panel a text with a line a recipe, and one with the mean accuracy of the tasks."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = relative(rows)
    texts = list(dict.fromkeys(text for _, _, text in found))
    fig, axes = plt.subplots(1, len(texts) + 1, figsize=(4 * (len(texts) + 1), 3.2))
    last, scores = axes[-1], scored(answered)
    for axis, text in zip(axes, texts, strict=False):
        for method in ("default", "pair", "svd-llm"):  # the others lie on lines of these
            name = NAMES[method]
            points = sorted((r, x) for (m, r, t), (_, x) in found.items() if m == method and t == text)
            axis.plot([0, *(r for r, _ in points)], [1, *(x for _, x in points)], marker="o", label=name)
        best = sorted(after(recovered, text).items())
        axis.plot([r for r, _ in best], [x for _, x in best], "s--", label="default recipe, after recover")
        if text != "generated":
            axis.plot(list(GOALS), list(GOALS.values()), "k_", markersize=14, label="goal, out of domain")
        axis.set(title=text, xlabel="ratio (of the MLP)", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("perplexity / dense")
    axes[-2].legend(fontsize=7)
    for method in (name for name in TASK_NAMES if name != "dense"):
        style = "s--" if "recovered" in method else "o-"
        means = [(r, *average(tasks)) for (r, m), tasks in scores.items() if m in ("dense", method)]
        last.errorbar(*zip(*means, strict=True), fmt=style, capsize=2, label=TASK_NAMES[method])
    last.set(title="five tasks, zero-shot", xlabel="ratio (of the MLP)", ylabel="mean accuracy")
    last.legend(fontsize=7)
    last.grid(alpha=0.3)
    fig.tight_layout()
    fig.savefig(path, dpi=90)
