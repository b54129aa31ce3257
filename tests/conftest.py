"""Models that every test may use: tiny seeded ones, and SmolLM2-135M for the slow tests.

The directories are shared by the whole session: copy before you damage one.
"""

import gc
import importlib.util
import os
from pathlib import Path

import pytest
from tiny_models import save_dense, save_factored

ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items):
    """Files with slow tests first, so that two workers end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """What the test files imported is never garbage: a collection need not walk over it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory):
    """A dense Llama directory: hidden 44, intermediate 90, 3 layers, byte tokenizer, untied embeddings."""
    return save_dense(tmp_path_factory.mktemp("tiny_llama") / "model", "llama")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory):
    """A dense Qwen3 directory of the same shape, tied embeddings."""
    return save_dense(tmp_path_factory.mktemp("tiny_qwen3") / "model", "qwen3")


@pytest.fixture(scope="session")
def tiny_svd_llama(tiny_llama, tmp_path_factory):
    """`tiny_llama` with rank 20 everywhere, layer 1's down projection dense."""
    return save_factored(tiny_llama, tmp_path_factory.mktemp("tiny_svd_llama") / "model", 20, ((1, "down_proj"),))


@pytest.fixture(scope="session")
def tiny_svd_qwen3(tiny_qwen3, tmp_path_factory):
    """`tiny_qwen3` with rank 20 everywhere, layer 1's down projection dense."""
    return save_factored(tiny_qwen3, tmp_path_factory.mktemp("tiny_svd_qwen3") / "model", 20, ((1, "down_proj"),))


@pytest.fixture(scope="session")
def smollm2_maker():
    """The module demo/smollm2.py."""
    spec = importlib.util.spec_from_file_location("demo_smollm2", ROOT / "demo" / "smollm2.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return demo


@pytest.fixture(scope="session")
def smollm2(smollm2_maker):
    """SmolLM2-135M-Instruct as a Hugging Face directory, kept in NXDI_SVD_CACHE (default .cache). Slow tests only."""
    return smollm2_maker.make(Path(os.environ.get("NXDI_SVD_CACHE", ROOT / ".cache")) / "smollm2")
