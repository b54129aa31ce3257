"""Importing the plugin is cheap, and the Auto classes know its models whatever is imported first."""

import subprocess
import sys

import pytest

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.modeling.auto import OTHER_TASKS

USE = """
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
directory = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(directory)
kind = AutoConfig.from_pretrained(directory).model_type
print(type(model).__name__, kind, len(AutoTokenizer.from_pretrained(directory)))
"""


def python(code, *argv):
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)


def test_import_of_the_package_imports_nothing_heavy():
    heavy = ("torch", "transformers", "numpy", "safetensors")
    done = python(f"import sys, nxdi_svd_plugin; print(sorted(set({heavy!r}) & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "imports",
    [
        "from transformers import AutoModelForCausalLM; import nxdi_svd_plugin",
        "from transformers import PreTrainedModel; import nxdi_svd_plugin",
        "import nxdi_svd_plugin; from transformers import AutoModelForCausalLM",
        # each of these reaches the Auto classes from another corner of transformers' import circle
        "import nxdi_svd_plugin; from transformers import AutoConfig",
        "import nxdi_svd_plugin; from transformers import LlamaForCausalLM",
        "import nxdi_svd_plugin; from transformers import PreTrainedModel",
    ],
)
def test_both_import_orders(imports, tiny_svd_llama):
    done = python(f"import sys; {imports}{USE}", str(tiny_svd_llama))
    assert done.stdout == "SvdLlamaForCausalLM svd_llama 259\n", done.stderr


def test_the_hook_is_gone_once_it_has_registered():
    done = python(
        "import sys, nxdi_svd_plugin as p\n"
        "from nxdi_svd_plugin.import_hook import Watcher\n"
        "from nxdi_svd_plugin.modeling.auto import register_with_transformers\n"
        "def hooks(): return [f.package for f in sys.meta_path if isinstance(f, Watcher)].count('transformers')\n"
        "register_with_transformers()\n"
        "before = hooks()\n"
        "from transformers import AutoConfig\n"
        "p.register(); p.register()\n"
        "print(before, hooks(), AutoConfig.for_model('svd_qwen3').model_type)\n"
    )
    assert done.stdout == "1 0 svd_qwen3\n", done.stderr


def test_without_the_plugin_transformers_fails_loudly(tiny_svd_llama):
    done = python(f"import sys{USE}", str(tiny_svd_llama))
    assert done.returncode != 0 and "svd_llama" in done.stderr


def test_attributes_of_the_package():
    import nxdi_svd_plugin
    from nxdi_svd_plugin.modeling import auto, load

    assert nxdi_svd_plugin.load_pretrained is load.load_pretrained
    assert nxdi_svd_plugin.register is auto.register
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = nxdi_svd_plugin.nonsense


@pytest.mark.parametrize("task", [*OTHER_TASKS, "AutoModelForCausalLM"])
def test_there_is_no_compressed_model_for_another_task(task, tiny_svd_llama, tiny_svd_qwen3):
    import transformers

    for directory in (tiny_svd_llama, tiny_svd_qwen3):
        config = transformers.AutoConfig.from_pretrained(directory)
        if task == "AutoModelForCausalLM":
            assert type(transformers.AutoModelForCausalLM.from_config(config)).__name__ == config.architectures[0]
            continue
        for make, source in (("from_pretrained", directory), ("from_config", config)):
            with pytest.raises(CheckpointError, match="is a causal language model: load it with AutoModelForCausalLM"):
                getattr(getattr(transformers, task), make)(source)
