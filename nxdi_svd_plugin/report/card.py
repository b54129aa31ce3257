"""README.md of a compressed directory: YAML metadata for the hub, then what was done and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from nxdi_svd_plugin.report.measured import Evaluation, Recovery
from nxdi_svd_plugin.report.record import Report
from nxdi_svd_plugin.report.serving import serving
from nxdi_svd_plugin.report.source_card import base_model, licence, llama_name, metadata_of
from nxdi_svd_plugin.stored.layers import Layers, groups_of
from nxdi_svd_plugin.stored.projection import DENSE_FORM, INTERPOLATIVE, PAIR, PROJECTIONS

TAGS = ["svd", "low-rank", "compressed", "neuron", "trainium", "nxdi"]
LLAMA_NOTICE = """\
**Built with Llama.** {name} is licensed under the {name} Community License, Copyright (c) Meta Platforms, Inc.
All Rights Reserved. A model distributed from this directory needs a name that begins with "Llama", a copy of that
licence and this notice.
"""
FORM_TEXTS = {
    PAIR: "as pairs of thin matrices, y = x U V",
    INTERPOLATIVE: "in the interpolative form, which keeps r intermediate neurons and makes the others of them (gate "
    "and up: x U, then x U C; down: (kept + others C) V)",
}
BODY = """\
# {title}

{link} with its MLP weights {stored}, by nxdi-svd-plugin:
{saved_mlp} % of the MLP parameters and {saved_model} % of all parameters are gone.
{notice}
## What was done

| | |
|---|---|
| licence | {licence} |
| ratio asked | {asked} of the {target} parameters |
| ratio reached | {mlp} of the MLP, {model} of the model |
| ranks | {ranks} |
| MLP weights of one core | {core} |
| calibration text | {calibration.text}, sha256 `{calibration.sha256}` |
| calibration tokens | {calibration.tokens} in {calibration.samples} samples, seed {calibration.seed} |
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


def model_card(report: Report, config: Mapping[str, Any], source_card: str = "") -> str:
    """The card of a compressed model.

    Args:
        config: its config.json.
        source_card: the source's README.md, whose licence, language and base model are taken over; "" if it has none.
    """
    source = metadata_of(source_card)
    base = base_model(report.source.name, config)
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
    ratio, calibration, advice = report.ratio, report.calibration, serving(report.layers)
    body = BODY.format(
        title=title,
        link=f"[{base}](https://huggingface.co/{base})" if "/" in base else base,
        stored=stored_text(report.layers),
        notice="\n" + LLAMA_NOTICE.format(name=llama) if llama else "",
        saved_mlp=f"{100 * ratio.mlp:.1f}",
        saved_model=f"{100 * ratio.model:.1f}",
        asked=ratio.asked,
        target="MLP" if ratio.target == "mlp" else "model's",
        mlp=f"{ratio.mlp:.4f}",
        model=f"{ratio.model:.4f}",
        ranks=rank_summary(report),
        core=report.core,
        impl=advice.impl,
        tp=advice.tp,
        fit=f"{advice.why}\n\n" if advice.why else "",
        calibration=calibration,
        licence=licence(source),
        versions=", ".join(f"{name} {version}" for name, version in report.versions.items()),
        recovery=refit_text(report) + recovery_text(report.recovery),
        evaluation=evaluation_text(report.evaluation),
    )
    return f"---\n{yaml.safe_dump(meta, sort_keys=False)}---\n\n{body}"


def stored_text(layers: Layers) -> str:
    """How the MLP weights are stored: their low-rank forms, in how many groups."""
    forms = sorted({p.form for mlp in layers.values() for _, p in mlp.items()} - {DENSE_FORM})
    if not forms:
        return "all dense"
    groups = groups_of(layers)
    return " and ".join(FORM_TEXTS[form] for form in forms) + (f", in {groups} groups of neurons" if groups > 1 else "")


def rank_summary(report: Report) -> str:
    """Smallest to largest rank of each projection, and how many stay dense; the widths, where neurons were dropped."""
    parts = []
    if any(record.drop_loss is not None for record in report.matrices):
        parts.append(f"intermediate neurons {_span({record.width for record in report.matrices})}")
    for name in PROJECTIONS:
        found = [record.rank for record in report.matrices if record.name == name]
        ranks = {rank for rank in found if rank is not None}
        dense = found.count(None)
        parts.append(f"{name} {_span(ranks) or 'all dense'}" + (f" ({dense} dense)" if dense and ranks else ""))
    return ", ".join(parts)


def _span(numbers: set[int]) -> str:
    ends = sorted({min(numbers), max(numbers)}) if numbers else []
    return " to ".join(map(str, ends))


def refit_text(report: Report) -> str:
    """That down was fitted again, "" when it was not."""
    if not report.refitted:
        return ""
    return (
        "\nThen down was fitted again by ridge least squares, layer by layer, behind the compressed layers before it. "
        "Output errors and predicted losses in `report.json` are those before.\n"
    )


def recovery_text(recovery: Recovery | None) -> str:
    """How the factors were trained after the compression, "" when they were not."""
    if recovery is None:
        return ""
    settings, data, perplexity = recovery.settings, recovery.data, recovery.perplexity
    return (
        f"\nThen the factors were trained ({settings['method']}, {recovery.loss}, {settings['steps']} steps of "
        f"{settings['batch']} windows of {settings['window']} tokens of {data.text}, sha256 `{data.sha256}`, "
        f"seed {settings['seed']}): validation perplexity {perplexity.input:.3f} before, "
        f"{perplexity.output:.3f} after.\n"
    )


def evaluation_text(evaluation: Evaluation | None) -> str:
    """The measured perplexities, or that none were."""
    if evaluation is None:
        return "Perplexity was not measured: `nxdi-svd evaluate --model DIR --base BASE --record` measures and adds it."
    lines = ["| | perplexity |", "|---|---|", f"| this model | {evaluation.perplexity:.3f} |"]
    if evaluation.base is not None:
        lines.append(f"| dense base | {evaluation.base.perplexity:.3f} |")
    how = (
        f"On {evaluation.tokens} tokens of {evaluation.text.name} (sha256 `{evaluation.text.sha256}`), windows of "
        f"{evaluation.window} tokens, stride {evaluation.stride}, {evaluation.dtype}."
    )
    return "\n".join([*lines, "", how])
