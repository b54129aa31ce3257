"""pytest plugin (`-p nxdi_harness`) of the checks in tests/nxdi/real: NxDI on a CPU, several ranks by fork.

Importing it stubs the Neuron packages that are absent, before anything imports NxDI.
"""

from __future__ import annotations

import os
import warnings

import neuron_stubs

STUBBED = neuron_stubs.install()
os.environ.setdefault("NXD_CPU_MODE", "1")
warnings.filterwarnings("ignore")

import pytest  # noqa: E402
import torch  # noqa: E402
from tiny_models import save_dense, save_factored  # noqa: E402

torch.set_num_threads(1)  # children are forked: no thread pool may exist


def pytest_report_header():
    import neuronx_distributed_inference
    import transformers

    return (
        f"NxDI {neuronx_distributed_inference.__version__}, transformers {transformers.__version__}, "
        f"stubs: {', '.join(STUBBED) or 'none'}"
    )


@pytest.fixture(scope="session", autouse=True)
def repaired_upstream():
    import upstream_patches

    return upstream_patches.apply()


def _svd_model(tmp_path_factory, family):
    """H 44, I 90, rank 20, down of layer 1 dense. Vocabulary 260: NxDI pads an odd one, and masks a logit too many."""
    folder = tmp_path_factory.mktemp(f"nxdi_{family}")
    dense = save_dense(folder / "dense", family, vocab_size=260)
    return save_factored(dense, folder / "svd", 20, ((1, "down_proj"),))


@pytest.fixture(scope="session")
def svd_llama(tmp_path_factory):
    return _svd_model(tmp_path_factory, "llama")


@pytest.fixture(scope="session")
def svd_qwen3(tmp_path_factory):
    return _svd_model(tmp_path_factory, "qwen3")
