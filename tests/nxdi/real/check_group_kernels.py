"""The NxDI model in groups through the kernels on the simulator: one, two and half a group on a core."""

import pytest
import ranks
import torch
from check_kernels import decode, with_a_call_each, with_simulated_kernels, with_two_kernels
from check_logits import save_interpolative
from cpu_models import dense_reference, reference_logits
from tiny_models import save_dense, save_factored

from nxdi_svd_plugin import load_pretrained

SHARED = [(2, 2), (2, 1), (2, 4)]
"""(groups, tp)."""
PROMPT, STEPS = torch.tensor([[5, 17, 201, 88, 3, 42, 9]]), 3


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    sizes = {"vocab_size": 260, "intermediate_size": 1024, "num_hidden_layers": 1}
    return save_dense(tmp_path_factory.mktemp("kernels") / "dense", "llama", **sizes)


def agree(directory, reference, groups, tp, width, kernels=("up_gate", "down")):
    """Prefill and decoding: a call of each kernel for all groups on the core, or for every one of them, as wide as the
    core's share; where both halves have a kernel and the tokens are few, as here, one call of one kernel."""
    if len(kernels) == 2 and tp != groups:
        results = ranks.run(tp, with_simulated_kernels, decode, "llama", directory, PROMPT, STEPS, tp_degree=tp)
        expected = reference_logits(reference, results[0][0]["tokens"], PROMPT.shape[1])
        for found, called in results:
            torch.testing.assert_close(found["logits"], expected, rtol=0, atol=5e-5 * expected.abs().max())
            assert [name for name, _ in called] == ["mlp"] * STEPS
    ways = [(with_two_kernels, 1), *([(with_a_call_each, groups // tp)] if groups > tp else [])]
    for way, calls in ways:
        results = ranks.run(tp, way, decode, "llama", directory, PROMPT, STEPS, tp_degree=tp)
        expected = reference_logits(reference, results[0][0]["tokens"], PROMPT.shape[1])
        for found, called in results:
            torch.testing.assert_close(found["logits"], expected, rtol=0, atol=5e-5 * expected.abs().max())
            for kernel in ("up_gate", "down"):
                shapes = [shape for name, shape in called if name == kernel]
                assert len(shapes) == (STEPS * calls if kernel in kernels else 0)
                assert kernel == "up_gate" or {rows for rows, _ in shapes} <= {width}


@pytest.mark.parametrize("kept", [(), ("gate_proj",), ("down_proj",)], ids=str)
@pytest.mark.parametrize(("groups", "tp"), SHARED)
def test_pairs(groups, tp, kept, dense, tmp_path):
    """The layer keeps 770 neurons: 385 a group, 193 where two cores share it, one of them zeros."""
    directory = save_factored(dense, tmp_path / "svd", 40, tuple((0, name) for name in kept), ((0, 770),), groups)
    kernels = {(): ("up_gate", "down"), ("gate_proj",): ("down",), ("down_proj",): ("up_gate",)}[kept]
    width = 385 if tp <= groups else 193
    agree(directory, dense_reference(directory, "llama"), groups, tp, width, kernels)


@pytest.mark.parametrize("half", ["both", "up_gate", "down"])
@pytest.mark.parametrize(("groups", "tp"), SHARED)
def test_interpolative(groups, tp, half, dense, tmp_path):
    """Tiles of pivots in every group of 512 neurons, in an order of their own; a half without kernel is dense."""
    tile = 128 * max(1, tp // groups)
    pivots = {"gate_proj": ((0, tile),), "up_proj": ((512 - tile, 512),), "down_proj": ((256, 256 + tile),)}
    kernels = {"both": ("up_gate", "down"), "up_gate": ("up_gate",), "down": ("down",)}[half]
    kept = {name: runs for name, runs in pivots.items() if ("down" if name == "down_proj" else "up_gate") in kernels}
    directory = save_interpolative(dense, tmp_path / "svd", kept, groups=groups)
    width = 512 if tp <= groups else 256
    agree(directory, load_pretrained(directory, dtype=torch.float32), groups, tp, width, kernels)
