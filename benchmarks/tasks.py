"""Task accuracy of SmolLM2 directories with lm-eval, zero-shot: rows with provenance (the paper's Figure 7).

    python benchmarks/tasks.py --data CHECKOUT --models SMOLLM2 OUT05 OUT10 ... --names dense default ...

CHECKOUT is github.com/AGI-Edgerunners/LLM-Adapters at 8166572, whose dataset/ holds the test questions of five of the
paper's tasks as instructions; `question` and its neighbours put them back into the columns that lm-eval reads. MathQA
is left out to save time, HellaSwag is not in the checkout. The first DOCUMENTS of each task
are asked, which is no published number. One row a model and task goes to benchmarks/data/tasks.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import sys
import tempfile
from pathlib import Path

import accuracy

ROWS = accuracy.ROOT / "benchmarks" / "data" / "tasks.jsonl"
DOCUMENTS, BATCH = 200, 16


def parts(instruction: str, word: str) -> tuple[str, list[str]]:
    """The question, and the answers after `word`1:, `word`2: and so on."""
    body = instruction.split(f"{word} format:" if f"{word} format:" in instruction else "Answer format:")[0]
    head, *answers = re.split(rf"\b{word}\d+:", body)
    return head.partition(": ")[2].strip(), [answer.strip() for answer in answers]


def chosen(record: dict) -> int:
    """Number of the right answer, from 0."""
    return int(record["answer"][-1]) - 1


def question(record: dict, key: str) -> dict:
    """A line of ARC (key "question") or OpenBookQA ("question_stem")."""
    asked, answers = parts(record["instruction"], "Answer")
    labels = "ABCDE"[: len(answers)]
    return {
        "id": "",
        key: asked,
        "choices": {"text": answers, "label": list(labels)},
        "answerKey": labels[chosen(record)],
    }


def physical(record: dict) -> dict:
    """A line of PIQA."""
    goal, (first, second) = parts(record["instruction"], "Solution")
    return {"goal": goal, "sol1": first, "sol2": second, "label": chosen(record)}


def pronoun(record: dict) -> dict:
    """A line of WinoGrande."""
    sentence, (first, second) = parts(record["instruction"], "Option")
    return {"sentence": sentence, "option1": first, "option2": second, "answer": str(chosen(record) + 1)}


TASKS = {
    "arc_easy": ("ARC-Easy", lambda record: question(record, "question")),
    "arc_challenge": ("ARC-Challenge", lambda record: question(record, "question")),
    "openbookqa": ("openbookqa", lambda record: question(record, "question_stem")),
    "piqa": ("piqa", physical),
    "winogrande": ("winogrande", pronoun),
}
METRICS = {"winogrande": "acc,none"}  # the others have the length-normalized one, as papers report


def write_data(checkout: Path, folder: Path) -> dict[str, str]:
    """TASK.jsonl in `folder` for every task; the SHA-256 of each."""
    hashes = {}
    for task, (name, line) in TASKS.items():
        records = json.loads((checkout / "dataset" / name / "test.json").read_text())
        content = "".join(json.dumps(line(record)) + "\n" for record in records).encode()
        (folder / f"{task}.jsonl").write_bytes(content)
        hashes[task] = hashlib.sha256(content).hexdigest()
    return hashes


def rows(model: Path, method: str, folder: Path, hashes: dict[str, str]) -> list[dict]:
    """One row a task."""
    from nxdi_svd_plugin.checkpoint.names import REPORT
    from nxdi_svd_plugin.evaluate import harness

    report = json.loads((model / REPORT).read_text()) if (model / REPORT).exists() else {}
    options = harness.Options(list(TASKS), DOCUMENTS, None, folder, 0, BATCH)
    with tempfile.TemporaryDirectory() as scratch:
        results = harness.run_tasks(model, harness.task_specs(options, Path(scratch)), options, "bfloat16")
    base: dict = {
        "method": method,
        "model": "SmolLM2-135M-Instruct",
        "dtype": "bfloat16",
        "machine": platform.machine(),
    }
    base |= {"ratio": report["ratio"]["mlp"] if report else 0.0, "recipe": report.get("recipe")}
    base |= {"recovery": report["recovery"]["settings"] if report.get("recovery") else None}
    found = []
    for task, scores in results["results"].items():
        metric = METRICS.get(task, "acc_norm,none")
        error = metric.replace(",", "_stderr,")
        row = base | {"task": task, "metric": metric, "score": scores[metric], "stderr": scores[error]}
        found.append(row | {"documents": results["n-samples"][task]["effective"], "data_sha256": hashes[task]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the checkout")
    parser.add_argument("--models", type=Path, nargs="+", required=True)
    parser.add_argument("--names", nargs="+", required=True, help="what each is called in the rows")
    args = parser.parse_args()
    sys.path.insert(0, str(accuracy.ROOT))
    with tempfile.TemporaryDirectory() as folder:
        hashes = write_data(args.data, Path(folder))
        for model, name in zip(args.models, args.names, strict=True):
            accuracy.add(found := rows(model, name, Path(folder), hashes), ROWS)
            print(name, found[0]["ratio"], [(row["task"], round(row["score"], 3)) for row in found], flush=True)


if __name__ == "__main__":
    main()
