"""The baselines against numpy, and what they move against its prediction and against the paper's Table 1."""

import numpy as np
import pytest
from kernel_cases import DTYPES, matrix

from nxdi_svd_plugin.kernels.measure import baselines
from nxdi_svd_plugin.kernels.measure.baselines import matmul, naive_fusion, result_strip_matmul
from nxdi_svd_plugin.kernels.tiling.dense import (
    Operand,
    Output,
    choose_dense,
    dense_hbm_bytes,
    dense_sbuf_bytes,
)
from nxdi_svd_plugin.simulator import TensorSpec, simulate


def spec(*shape):
    return TensorSpec(shape, np.dtype("float16"))


def test_table_1():
    """The paper's 4 x FLOP; its traffic explained to 5 % (docs/kernels.md says by which blocks)."""
    s, n = 2048, 8192
    first = simulate(result_strip_matmul, spec(s, s), spec(s, s), columns=512, count_only=True)[1]
    second = simulate(result_strip_matmul, spec(s, s), spec(s, n), columns=512, count_only=True)[1]
    naive = simulate(naive_fusion, spec(s, s), spec(s, s), spec(s, n), count_only=True)[1]
    assert (first.matmul_flops + second.matmul_flops) / 1e9 == pytest.approx(85.90, rel=1e-3)
    assert naive.matmul_flops / 1e9 == pytest.approx(343.60, rel=1e-3)
    transposes = 2 * (s * s * 2) * 2  # X and X·U, each read and written once more
    assert (first.hbm_bytes + second.hbm_bytes + transposes) / 1e6 == pytest.approx(298.66, rel=0.05)
    assert naive.hbm_bytes / 1e6 == pytest.approx(3140.42, rel=0.05)


def test_the_tutorials_result_strip_spills_for_long_inputs():
    short = simulate(result_strip_matmul, spec(1024, 4096), spec(1024, 2048), count_only=True, strict=False)[1]
    long = simulate(result_strip_matmul, spec(1024, 16384), spec(1024, 2048), count_only=True, strict=False)[1]
    assert short.spill_save_bytes == 0 < long.spill_save_bytes


DENSE_SHAPES = {
    (200, 300, 700): Operand,
    (1024, 256, 384): Operand,
    (130, 128, 2000): Operand,
    (1, 640, 512): Operand,
    (1350, 3900, 2249): Output,  # two blocks of columns; blocks of rows: test_sums_in_sbuf_round_once
    (515, 8003, 515): Output,
}


@pytest.mark.parametrize("shape", DENSE_SHAPES)
def test_dense_baseline(shape):
    rows, deep, columns = shape
    rng = np.random.default_rng(0)
    x_t, w = matrix(rng, deep, rows, np.float32), matrix(rng, deep, columns, np.float32)
    y, trace = simulate(matmul, x_t, w)
    np.testing.assert_allclose(y, x_t.T.astype(np.float64) @ w, atol=1e-4 * deep**0.5)
    plan = choose_dense(rows, deep, columns, 4)
    assert isinstance(plan, DENSE_SHAPES[shape])
    assert dense_hbm_bytes(rows, deep, columns, 4, plan) == trace.hbm_bytes
    assert dense_sbuf_bytes(deep, 4, plan) >= trace.sbuf_peak_bytes


@pytest.mark.parametrize("deep", [900, 768, 384, 100])
def test_sums_in_sbuf_round_once(deep, monkeypatch):
    """bf16: half a unit in the last place of the truth, beside what fp32 sums leave."""
    rows, columns, plan = 1300, 1100, Output(640, 512)
    monkeypatch.setattr(baselines, "choose_dense", lambda *_: plan)
    rng = np.random.default_rng(0)
    x_t, w = matrix(rng, deep, rows, DTYPES["bf16"]), matrix(rng, deep, columns, DTYPES["bf16"])
    y, trace = simulate(matmul, x_t, w)
    truth = x_t.T.astype(np.float64) @ w.astype(np.float64)
    assert (np.abs(y.astype(np.float64) - truth) <= 2**-8 * np.abs(truth) + 1e-5 * deep**0.5).all()
    assert dense_hbm_bytes(rows, deep, columns, 2, plan) == trace.hbm_bytes
    assert dense_sbuf_bytes(deep, 2, plan) >= trace.sbuf_peak_bytes


@pytest.mark.parametrize(
    ("rows", "deep", "columns", "kind"),
    [
        (1024, 7168, 18432, Operand),
        (2048, 7168, 18432, Output),
        (4096, 7168, 18432, Output),
        (8192, 7168, 18432, Operand),
        (4096, 7168, 2048, Output),
        (2048, 4096, 18432, Operand),
    ],
)
def test_dense_baseline_at_the_papers_shapes(rows, deep, columns, kind):
    """Bytes and SBUF as predicted, room for two loads, the tensor engine the busiest."""
    plan = choose_dense(rows, deep, columns)
    trace = simulate(matmul, spec(deep, rows), spec(deep, columns), count_only=True)[1]
    assert isinstance(plan, kind)
    assert dense_hbm_bytes(rows, deep, columns, 2, plan) == trace.hbm_bytes
    assert trace.sbuf_peak_bytes <= dense_sbuf_bytes(deep, 2, plan) <= dense_sbuf_bytes(deep, 2, plan, 2) <= 176 * 1024
    busy = trace.modelled_seconds
    assert max(busy, key=lambda engine: busy[engine]) == "pe"


def test_naive_fusion_and_result_strip_compute_the_same_as_numpy():
    rng = np.random.default_rng(1)
    x_t, u, v = (matrix(rng, *shape, np.float32) for shape in ((256, 256), (256, 512), (512, 1024)))
    np.testing.assert_allclose(simulate(naive_fusion, x_t, u, v)[0], x_t.T @ u @ v, atol=2e-2)
    np.testing.assert_allclose(simulate(result_strip_matmul, u, v[:256])[0], u.T @ v[:256], atol=2e-3)
