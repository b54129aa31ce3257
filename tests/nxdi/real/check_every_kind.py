"""One model of everything that a directory can hold: two groups, five widths, pairs, pivots and dense projections.

transformers' class, NxDI's with plain operations and NxDI's through the kernels on the simulator, each against
transformers' own dense model with the weights multiplied out in float64.
"""

import pytest
import ranks
import torch
from check_kernels import decode, with_simulated_kernels, with_two_kernels
from check_logits import save_layers
from cpu_models import dense_reference, reference_logits, run_model
from tiny_models import save_dense

from nxdi_svd_plugin import load_pretrained
from nxdi_svd_plugin.stored.projection import PROJECTIONS

GROUPS, NEURONS = 2, 1024
GATE_UP = {"gate_proj": ((0, 128),), "up_proj": ((256, 384),)}
DOWN = {"down_proj": ((128, 256),)}
KINDS = [
    (770, {}, PROJECTIONS),
    (NEURONS, GATE_UP | DOWN, ()),
    (768, GATE_UP, ("down_proj",)),
    (1022, {}, ("gate_proj", "up_proj")),
    (NEURONS, DOWN, ()),
    (514, {}, ()),
]
"""(neurons that stay, pivots of a group, projections that are pairs) of each layer; what is neither is dense."""
PROMPT, STEPS = torch.tensor([[5, 17, 201, 88, 3, 42, 9]]), 3


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("every_kind")
    sizes = {"vocab_size": 260, "intermediate_size": NEURONS, "num_hidden_layers": len(KINDS)}
    return request.param, save_layers(
        save_dense(folder / "dense", request.param, **sizes), folder / "svd", KINDS, GROUPS
    )


def compare(family, directory, tokens, logits, tolerance):
    expected = reference_logits(dense_reference(directory, family), tokens, PROMPT.shape[1])
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance * expected.abs().max())


def test_transformers(made):
    family, directory = made
    tokens = torch.cat([PROMPT, torch.tensor([[31, 7, 250]])], 1)
    logits = reference_logits(load_pretrained(directory, dtype=torch.float32), tokens, PROMPT.shape[1])
    compare(family, directory, tokens, logits, 2e-5)


@pytest.mark.parametrize("tp", [1, 2])
def test_plain_operations(tp, made):
    family, directory = made
    for found in ranks.run(tp, run_model, family, directory, PROMPT, STEPS, mlp_impl="svd", tp_degree=tp):
        compare(family, directory, found["tokens"], found["logits"], 2e-5)


@pytest.mark.parametrize(
    ("way", "whole"), [(with_simulated_kernels, {"mlp"}), (with_two_kernels, set())], ids=["mlp", "no mlp"]
)
@pytest.mark.parametrize("tp", [1, 2])
def test_kernels(tp, way, whole, made):
    family, directory = made
    for found, called in ranks.run(tp, way, decode, family, directory, PROMPT, STEPS, tp_degree=tp):
        compare(family, directory, found["tokens"], found["logits"], 5e-5)
        assert {name for name, _ in called} == {"up_gate", "down"} | whole
