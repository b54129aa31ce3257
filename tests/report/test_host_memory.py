"""The host's memory for NxDI, against sums written out."""

import pytest
from tiny_models import save_dense

from nxdi_svd_plugin.checkpoint.source import read_config
from nxdi_svd_plugin.report.host_memory import core_parameters, host_memory
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import DENSE, LowRank

H, W, V, HEADS, KV, DIM, LAYERS = 64, 96, 160, 8, 2, 8, 2


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    sizes = {"hidden_size": H, "intermediate_size": W, "vocab_size": V, "num_hidden_layers": LAYERS, "head_dim": DIM}
    heads = {"num_attention_heads": HEADS, "num_key_value_heads": KV, "tie_word_embeddings": True}
    return read_config(save_dense(tmp_path_factory.mktemp("dense"), "llama", **sizes, **heads))


@pytest.mark.parametrize(("tp", "kv_heads"), [(1, KV), (2, KV), (4, 4), (8, 8)])
def test_every_matrix_is_split_and_norms_are_whole(config, tp, kv_heads):
    """Llama with 8 heads and 2 K and V heads: as they are where they divide over the cores, else one for each core."""
    mlp = Mlp(W, LowRank(32), LowRank(32), DENSE)
    norms, q_and_o = (2 * LAYERS + 1) * H, LAYERS * 2 * H * HEADS * DIM
    k_and_v, tables = LAYERS * 2 * H * DIM, 2 * V * H  # of one head; a tied head is a tensor of its own in NxDI
    low = LAYERS * (2 * (H * 32 + 32 * W // tp) + H * W // tp)
    one = norms + (q_and_o + k_and_v * kv_heads + tables) // tp + low
    whole = norms + q_and_o + k_and_v * KV + tables + LAYERS * (2 * (H * 32 + 32 * W) + H * W)
    found = host_memory(config, dict.fromkeys(range(LAYERS), mlp), tp, 2)
    assert (found.trace, found.shard) == (2 * 2 * one, 2 * (whole + tp * one))


@pytest.mark.parametrize(("groups", "tp", "near"), [(1, 2, 1), (2, 2, 2), (4, 2, 2), (2, 4, 2)])
def test_a_core_has_the_near_of_its_groups(groups, tp, near):
    """near [64, 32] is whole on the cores of a group, far [32 / g, 96] is split over all."""
    pair = LowRank(32, groups=groups)
    assert core_parameters(H, Mlp(W, pair, pair, pair), tp) == 3 * (H * 32 // near + 32 // groups * W // tp)


def test_heads_that_fit_no_number_of_cores_become_those_of_q(config):
    """6 cores and 4 K and V heads of 12: as many as Q heads."""
    raw = {**config.raw, "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 8, "hidden_size": 96}
    odd = type(config)(config.directory, raw, "llama", 96, W, LAYERS)
    layers = {i: Mlp(W, DENSE, DENSE, DENSE) for i in range(LAYERS)}
    one = (2 * LAYERS + 1) * 96 + (LAYERS * 4 * 96 * 96 + 2 * V * 96 + LAYERS * 3 * 96 * W) // 6
    assert host_memory(odd, layers, 6, 2).trace == 4 * one


def test_the_one_public_report(config):
    """Llama-3.1-8B at tp 1 was killed on a host of 32 GB."""
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    raw = {**config.raw, **heads, **sizes, "tie_word_embeddings": False}
    big = type(config)(config.directory, raw, "llama", 4096, 14336, 32)
    layers = {i: Mlp(14336, DENSE, DENSE, DENSE) for i in range(32)}
    assert host_memory(big, layers, 1, 2).trace > 32e9 > host_memory(big, layers, 2, 2).trace
