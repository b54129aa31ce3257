"""The packed layouts: exact inverse, zero padding, long runs, numpy and torch alike."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.kernels import pack, unpack

KERNELS = ["xuv", "up_gate", "down"]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 300), st.integers(1, 700), st.sampled_from(KERNELS))
def test_unpack_is_the_inverse(inputs, rank, outputs, kernel):
    rng = np.random.default_rng(0)
    u, v = rng.standard_normal((inputs, rank)), rng.standard_normal((rank, outputs))
    packed = pack(u, v, kernel)
    assert packed[0].shape == (128, -(-inputs // 128) * rank)
    assert packed[1].shape == (128, -(-rank // 128) * outputs)
    for got, want in zip(unpack(*packed, inputs, kernel), (u, v), strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(np.abs(packed[0]).sum(), np.abs(u).sum())  # the padding is zero


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", [(576, 384, 1536), (100, 130, 520)])
def test_torch_gives_the_same_layout(kernel, shape):
    inputs, rank, outputs = shape
    u, v = torch.randn(inputs, rank).bfloat16(), torch.randn(rank, outputs).bfloat16()
    packed = pack(u, v, kernel)
    assert all(isinstance(p, torch.Tensor) and p.dtype == torch.bfloat16 and p.is_contiguous() for p in packed)
    expected = pack(u.float().numpy(), v.float().numpy(), kernel)
    for got, want in zip(packed, expected, strict=True):
        np.testing.assert_array_equal(got.float().numpy(), want)
    for got, want in zip(unpack(*packed, inputs, kernel), (u, v), strict=True):
        assert torch.equal(got, want)


def test_one_rank_tile_is_one_run_per_partition():
    u, v = np.arange(256 * 256.0).reshape(256, 256), np.zeros((256, 128))
    packed, _ = pack(u, v)
    run = packed[3, : 2 * 128]  # partition 3, rank tile 0: row 3 of both contraction tiles
    np.testing.assert_array_equal(run, np.concatenate([u[3, :128], u[131, :128]]))


def test_down_keeps_neighbouring_rows_on_one_partition():
    u = np.arange(256.0)[:, None] * np.ones((1, 128))
    packed, _ = pack(u, np.zeros((128, 128)), "down")
    assert [packed[5, 0], packed[5, 128]] == [10, 11]


def test_errors_name_the_shapes():
    with pytest.raises(KernelError, match=r"\(4, 5\).*\(6, 7\)"):
        pack(np.zeros((4, 5)), np.zeros((6, 7)))
    with pytest.raises(KernelError, match="unknown"):
        pack(np.zeros((4, 5)), np.zeros((5, 7)), "gate")
    with pytest.raises(KernelError, match="not packed from 300 inputs"):
        unpack(*pack(np.zeros((128, 5)), np.zeros((5, 7))), 300)
