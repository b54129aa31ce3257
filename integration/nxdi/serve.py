"""One model, one `mlp_impl`, one process: compile and load, check against transformers, measure, write one JSON row.

    python serve.py REQUEST.json ROW.json

REQUEST has directory, mlp_impl, options (of NxDI's NeuronConfig) and device ("cpu" or "trn1").
"""

import json
import os
import sys
import time
from importlib import metadata
from pathlib import Path

if json.loads(Path(sys.argv[1]).read_text())["device"] == "cpu":
    os.environ["NXD_CPU_MODE"] = "1"
    import neuron_stubs
    import upstream_patches

    neuron_stubs.install()
else:
    upstream_patches = None

import torch  # noqa: E402

PROMPT_TOKENS, STEPS = 8, 8
RUNS = {"cpu": 2, "trn1": 20}


def application(directory, mlp_impl, options):
    """The NxDI application, built as NxDI's own examples do."""
    from neuronx_distributed_inference.utils.hf_adapter import load_pretrained_config

    from nxdi_svd_plugin.nxdi import NeuronSvdLlamaForCausalLM, NeuronSvdQwen3ForCausalLM

    model_type = json.loads((Path(directory) / "config.json").read_text())["model_type"]
    app = NeuronSvdQwen3ForCausalLM if model_type.endswith("qwen3") else NeuronSvdLlamaForCausalLM
    options = {**options, "torch_dtype": getattr(torch, options["torch_dtype"])}
    neuron_config = app.get_neuron_config_cls()(mlp_impl=mlp_impl, **options)
    config = app.get_config_cls()(neuron_config, load_config=load_pretrained_config(str(directory)))
    return app(str(directory), config)


def start(model, directory, mlp_impl, device):
    """Load on the CPU, or compile (seconds are returned) and load on the device."""
    if device == "cpu":
        model.to_cpu()
        return 0.0
    began = time.monotonic()
    compiled = f"{directory}/neuron-{mlp_impl}"
    model.compile(compiled)
    seconds = time.monotonic() - began
    model.load(compiled)
    return seconds


def greedy(model, ids):
    """Tokens and logits of greedy decoding through NxDI's forward: [1, prompt + steps], [steps, vocabulary]."""
    model.reset()
    tokens, logits = ids, []
    for step in range(STEPS):
        length = tokens.shape[1]
        new, positions, seen = tokens, torch.arange(length)[None], length
        if step:
            new, positions, seen = tokens[:, -1:], torch.tensor([[length - 1]]), length - 1
        mask, rows = torch.ones(1, seen, dtype=torch.long), torch.zeros(1, dtype=torch.int32)
        output = model(input_ids=new, attention_mask=mask, position_ids=positions, seq_ids=rows)
        logits.append(output.logits[0, -1].float().clone())
        tokens = torch.cat([tokens, logits[-1].argmax()[None, None]], 1)
    return tokens, torch.stack(logits)


def reference(directory, dtype, tokens):
    """transformers on the CPU, the same factors, the same tokens: logits [steps, vocabulary]."""
    from transformers import AutoModelForCausalLM

    from nxdi_svd_plugin import load_pretrained

    compressed = "svd_config" in json.loads((Path(directory) / "config.json").read_text())
    if compressed:
        model = load_pretrained(directory, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=dtype)
    with torch.no_grad():
        return model(tokens[:, :-1]).logits[0, PROMPT_TOKENS - 1 :].float()


def compare(directory, dtype, tokens, logits):
    """Largest logit error, the error allowed, and whether every token that the reference is sure of is the same.

    Allowed: twice the error of the reference in the serving precision; for float32, 2^-14 of the largest logit.
    """
    exact = reference(directory, torch.float32, tokens)
    floor = float(exact.abs().max()) * 2.0**-14
    rounded = float((reference(directory, dtype, tokens) - exact).abs().max())
    allowed = max(2 * rounded, floor)
    best = exact.topk(2, dim=-1)
    sure = best.values[:, 0] - best.values[:, 1] > 2 * allowed
    same = best.indices[:, 0] == tokens[0, PROMPT_TOKENS:]
    return float((logits[:, : exact.shape[1]] - exact).abs().max()), allowed, bool(same[sure].all())


def measure(model, runs):
    """NxDI's own end-to-end benchmark: its report of generate()."""
    from neuronx_distributed_inference.utils.benchmark import benchmark_sampling
    from transformers import GenerationConfig

    settings = GenerationConfig(do_sample=False, top_k=1, top_p=1.0, temperature=1.0, pad_token_id=0, eos_token_id=None)
    report = benchmark_sampling(
        model, None, settings, target="e2e", num_runs=runs, benchmark_report_path="benchmark_report.json"
    )
    return (report or json.loads(Path("benchmark_report.json").read_text()))["e2e_model"]


def versions():
    """Of the packages that matter, where they are installed."""
    found = {"nxdi": __import__("neuronx_distributed_inference").__version__, "torch": torch.__version__}
    for name in ("neuronx-cc", "torch-neuronx", "neuronx-distributed", "transformers"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main():
    request = json.loads(Path(sys.argv[1]).read_text())
    directory, impl, device, options = (request[key] for key in ("directory", "mlp_impl", "device", "options"))
    if upstream_patches:
        upstream_patches.apply()
    model = application(directory, impl, options)
    compile_seconds = start(model, directory, impl, device)
    vocabulary = model.config.vocab_size
    ids = torch.randint(3, vocabulary, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    tokens, logits = greedy(model, ids)
    error, allowed, equal = compare(directory, getattr(torch, options["torch_dtype"]), tokens, logits)
    report = measure(model, RUNS[device])
    row = {
        "what": "end to end, NxDI benchmark_sampling", "device": device, "model": Path(directory).name,
        "mlp_impl": impl, "options": options, "compile_seconds": compile_seconds, "tokens_equal": equal,
        "logit_error": error, "logit_error_allowed": allowed, "latency_ms_p50": report["latency_ms_p50"],
        "latency_ms_p99": report["latency_ms_p99"], "throughput_tokens_per_s": report["throughput"],
        "runs": RUNS[device], "versions": versions(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    Path(sys.argv[2]).write_text(json.dumps(row))


if __name__ == "__main__":
    main()
