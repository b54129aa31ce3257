"""Models that every test may use: tiny seeded ones, and SmolLM2-135M for the slow tests.

The directories are shared by the whole session: copy before you damage one.
"""

import importlib.util
import os
from pathlib import Path

import pytest
from tiny_models import save_dense, save_factored

ROOT = Path(__file__).parents[1]


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
def smollm2():
    """SmolLM2-135M-Instruct as a Hugging Face directory, kept in NXDI_SVD_CACHE (default .cache). Slow tests only."""
    spec = importlib.util.spec_from_file_location("demo_smollm2", ROOT / "demo" / "smollm2.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    return demo.make(Path(os.environ.get("NXDI_SVD_CACHE", ROOT / ".cache")) / "smollm2")
