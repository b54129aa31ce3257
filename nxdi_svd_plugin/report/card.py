"""README.md of a compressed directory: YAML metadata for the hub, then what was done and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nxdi_svd_plugin.checkpoint.atomic import write_bytes, write_json
from nxdi_svd_plugin.checkpoint.names import CONFIG, REPORT, read_json
from nxdi_svd_plugin.checkpoint.serving import serving
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.stored.layers import PROJECTIONS

CARD = "README.md"
TAGS = ["svd", "low-rank", "compressed", "neuron", "trainium", "nxdi"]
LLAMA_NOTICE = """\
**Built with Llama.** {name} is licensed under the {name} Community License, Copyright (c) Meta Platforms, Inc.
All Rights Reserved. A model distributed from this directory needs a name that begins with "Llama", a copy of that
licence and this notice.
"""
BODY = """\
# {title}

{link} with its MLP weights factored, y = x U V, by nxdi-svd-plugin: {saved_mlp} % of the MLP parameters and
{saved_model} % of all parameters are gone.
{notice}
## What was done

| | |
|---|---|
| licence | {licence} |
| ratio asked | {asked} of the {target} parameters |
| ratio reached | {mlp} of the MLP, {model} of the model |
| ranks | {ranks} |
| calibration text | {text}, sha256 `{sha256}` |
| calibration tokens | {tokens} in {samples} samples, seed {seed} |
| made with | {versions} |
{recovery}
{evaluation}

`report.json` has the rank, the output error and the ridge of every matrix, and the recipe.

## How to load it

On a CPU, with transformers 4.51 or newer and nxdi-svd-plugin (`pip install .` in its source; it is not on PyPI):

```python
import nxdi_svd_plugin

model = nxdi_svd_plugin.load_pretrained("DIR")  # raises if a weight is missing or damaged
```

`AutoModelForCausalLM.from_pretrained("DIR")` works too, after `import nxdi_svd_plugin`. Without the plugin
transformers stops at the unknown model type.

{fit}With NxD Inference on trn1 (SDK 2.26 to 2.28); everything after `run` is an argument of NxDI's `inference_demo`:

```
nxdi-svd neuron run --model-path DIR --compiled-model-path COMPILED --mlp-impl {impl} --tp-degree {tp} \\
  --torch-dtype bfloat16 --batch-size 1 --max-context-length 1024 --seq-len 2048 --prompt "..."
```

With vLLM on trn1 (vllm-neuron of SDK 2.26 to 2.28; the plugin registers itself through `vllm.general_plugins`):

```
vllm serve DIR --tensor-parallel-size {tp} --max-model-len 2048 \\
  --additional-config '{{"override_neuron_config": {{"mlp_impl": "{impl}"}}}}'
```
"""


def model_card(report: Mapping[str, Any], config: Mapping[str, Any], source_card: str = "") -> str:
    """The card of a compressed model.

    Args:
        report: report.json's keys source, ratio, matrices, calibration, versions; recovery and evaluation if done.
        config: the compressed directory's config.json.
        source_card: the source's README.md, whose licence, language and base model are taken over; "" if it has none.
    """
    source = metadata_of(source_card)
    base = base_model(report, config)
    llama = llama_name(source, base)
    title = f"{'Llama-' if llama and not base.split('/')[-1].startswith('Llama') else ''}{base.split('/')[-1]}-SVD"
    meta: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": base,
        "base_model_relation": "quantized",
        **{key: source[key] for key in ("license", "license_name", "license_link", "language") if key in source},
        "tags": [*TAGS, *(["llama"] if llama else [])],
    }
    ratio, calibration = report["ratio"], report["calibration"]
    impl, tp, fit = serving(config)
    body = BODY.format(
        title=title,
        link=f"[{base}](https://huggingface.co/{base})" if "/" in base else base,
        notice="\n" + LLAMA_NOTICE.format(name=llama) if llama else "",
        saved_mlp=f"{100 * ratio['mlp']:.1f}",
        saved_model=f"{100 * ratio['model']:.1f}",
        asked=ratio["asked"],
        target="MLP" if ratio["target"] == "mlp" else "model's",
        mlp=f"{ratio['mlp']:.4f}",
        model=f"{ratio['model']:.4f}",
        ranks=rank_summary(report["matrices"]),
        impl=impl,
        tp=tp,
        fit=fit,
        **{key: calibration[key] for key in ("text", "sha256", "tokens", "samples", "seed")},
        licence=licence(source),
        versions=", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        recovery=recovery_text(report.get("recovery")),
        evaluation=evaluation_text(report.get("evaluation")),
    )
    return f"---\n{yaml.safe_dump(meta, sort_keys=False)}---\n\n{body}"


def read_card(directory: Path) -> str:
    """The card of a directory, "" when it has none."""
    path = directory / CARD
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def metadata_of(card: str) -> dict[str, Any]:
    """The YAML front matter of a card, {} when there is none that can be read."""
    if not card.startswith("---\n") or "\n---" not in card[4:]:
        return {}
    try:
        loaded = yaml.safe_load(card[4:].split("\n---", 1)[0])
    except yaml.YAMLError:
        return {}
    return loaded if isinstance(loaded, dict) else {}


def base_model(report: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The hub id of the source where its config.json tells one, else the name of its directory."""
    recorded = str(config.get("_name_or_path", ""))
    if recorded.count("/") == 1 and not recorded.startswith((".", "/", "~")):
        return recorded
    return str(report["source"]["name"])


def llama_name(source: Mapping[str, Any], base: str) -> str:
    """ "Llama 3.2" when the source has Meta's licence, which its card's `license` or its name says; "" otherwise."""
    licence = str(source.get("license_name") or source.get("license") or "").lower()
    if not licence:
        licence = base.split("/")[-1].lower().replace("meta-", "").replace("llama-", "llama")
    for version in ("3.3", "3.2", "3.1", "3", "2"):
        if licence.startswith(f"llama{version}"):
            return f"Llama {version}"
    return ""


def licence(source: Mapping[str, Any]) -> str:
    """The licence that the source's card states, or that it states none."""
    name = str(source.get("license_name") or source.get("license") or "")
    if not name:
        return "not stated by the source: the base model's terms apply"
    link = source.get("license_link")
    return f"{name}, as the base model" + (f" ({link})" if link else "")


def rank_summary(matrices: list[dict[str, Any]]) -> str:
    """Smallest to largest rank of each projection, and how many stay dense."""
    parts = []
    for name in PROJECTIONS:
        rows = [row for row in matrices if row["projection"] == name]
        ranks = sorted({row["rank"] for row in rows if row["form"] != "dense"})
        dense = sum(row["form"] == "dense" for row in rows)
        span = f"{ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else "all dense"
        parts.append(f"{name} {span}" + (f" ({dense} dense)" if dense and ranks else ""))
    return ", ".join(parts)


def recovery_text(recovery: Mapping[str, Any] | None) -> str:
    """How the factors were trained after the compression, "" when they were not."""
    if not recovery:
        return ""
    settings, data, perplexity = recovery["settings"], recovery["data"], recovery["perplexity"]
    return (
        f"\nThen the factors were trained ({settings['method']}, {recovery['loss']}, {settings['steps']} steps of "
        f"{settings['batch']} windows of {settings['window']} tokens of {data['text']}, sha256 `{data['sha256']}`, "
        f"seed {settings['seed']}): validation perplexity {perplexity['input']:.3f} before, "
        f"{perplexity['output']:.3f} after.\n"
    )


def evaluation_text(evaluation: Mapping[str, Any] | None) -> str:
    """The measured perplexities, or that none were."""
    if not evaluation:
        return "Perplexity was not measured: `nxdi-svd evaluate --model DIR --base BASE --record` measures and adds it."
    rows = [("this model", evaluation), *([("dense base", evaluation["base"])] if "base" in evaluation else [])]
    return "\n".join(
        [
            "| | perplexity |",
            "|---|---|",
            *(f"| {name} | {row['perplexity']:.3f} |" for name, row in rows),
            "",
            f"On {evaluation['tokens']} tokens of {evaluation['text']['name']} "
            f"(sha256 `{evaluation['text']['sha256']}`), windows of {evaluation['window']} tokens, "
            f"stride {evaluation['stride']}, {evaluation['dtype']}.",
        ]
    )


def recordable(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """report.json and config.json of a directory that an evaluation can be recorded in.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    try:
        return read_json(directory / REPORT), read_json(directory / CONFIG)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{directory} has no report to record the evaluation in ({error}); --record is for compressed directories"
        ) from error


def record_evaluation(directory: Path, evaluation: Mapping[str, Any]) -> None:
    """Put measured perplexities into report.json and the card of a compressed directory.

    Raises:
        CheckpointError: no readable report.json or config.json.
    """
    report, config = recordable(directory)
    report["evaluation"] = {**evaluation, "model": directory.resolve().name}
    if "base" in evaluation:
        report["evaluation"]["base"] = {**evaluation["base"], "model": Path(evaluation["base"]["model"]).resolve().name}
    write_json(directory / REPORT, report)
    write_bytes(directory / CARD, model_card(report, config, read_card(directory)).encode())
