"""plan: config.json alone is enough, and nothing that takes seconds is imported."""

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("form", "kernels"), [("interpolative", set()), ("pair", {"mlp"})])
def test_plan_imports_neither_torch_nor_transformers(form, kernels, tiny_llama, tmp_path):
    """Pivots in blocks of 2 are no whole tiles: no kernel; a pair's are planned and counted, two groups on a core."""
    alone = tmp_path / "model"
    alone.mkdir()
    (alone / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    code = f"""
import sys
from nxdi_svd_plugin.cli.main import main
assert main(["plan", "--model", {str(alone)!r}, "--block", "2", "--form", {form!r}, "--tp", "1", "--json"]) == 0
print(sorted({{"torch", "transformers", "tokenizers", "safetensors"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    plan = json.loads(done.stdout)
    assert plan["model"] == "model" and plan["host_memory"] and plan["ratio"]["asked"] == 0.1
    assert plan["recipe"]["tp_degree"] == 2
    assert {kernel for kernel in ("mlp", "up_gate", "down") if kernel in plan["kernels"][0]} == kernels
