"""plan: config.json alone is enough, and nothing that takes seconds is imported."""

import json
import subprocess
import sys


def test_plan_imports_neither_torch_nor_transformers(tiny_llama, tmp_path):
    alone = tmp_path / "model"
    alone.mkdir()
    (alone / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    code = f"""
import sys
from nxdi_svd_plugin.cli.main import main
assert main(["plan", "--model", {str(alone)!r}, "--block", "2", "--tp", "2", "--json"]) == 0
print(sorted({{"torch", "transformers", "tokenizers", "safetensors"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"
    plan = json.loads(done.stdout)
    assert plan["model"] == "model" and plan["kernels"] and plan["ratio"]["asked"] == 0.1
