"""Numerics, latency and HBM traffic of the kernels on the chosen target."""

import kernel_targets
import ml_dtypes
import numpy as np
import pytest
from kernel_shapes import CASES

from nxdi_svd_plugin.kernels import pack, reference

PAPER = "7168x4096x18432"
SHAPES = [(1, 576, 384, 1536), (8, 2048, 1536, 8192), (77, 576, 200, 1000), (512, 1024, 512, 1536)]


def factors(rng, inputs, rank, outputs, dtype):
    u = rng.standard_normal((inputs, rank)) * inputs**-0.5
    return u.astype(dtype), (rng.standard_normal((rank, outputs)) * rank**-0.5).astype(dtype)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize(("tokens", "inputs", "rank", "outputs"), SHAPES)
@pytest.mark.parametrize("kernel", ["xuv", "up_gate", "down"])
def test_numerics(target, kernel, tokens, inputs, rank, outputs, dtype):
    """At most twice the error of the same chain in plain low precision, against float64."""
    rng = np.random.default_rng(0)
    if kernel == "down":
        inputs, outputs = outputs, inputs
    pairs = [factors(rng, inputs, rank, outputs, dtype) for _ in range(2 if kernel == "up_gate" else 1)]
    x = rng.standard_normal((inputs, tokens) if kernel == "down" else (tokens, inputs)).astype(dtype)
    plain = [factor for pair in pairs for factor in pair]
    got = np.asarray(target.run(kernel, x, *[f for u, v in pairs for f in pack(u, v, kernel)])).astype(np.float64)
    exact = getattr(reference, kernel)(x.astype(np.float64), *[f.astype(np.float64) for f in plain])
    low = getattr(reference, kernel)(x, *plain, dtype=dtype).astype(np.float64)
    allowed = 2 * np.linalg.norm(low - exact) + 1e-6 * np.linalg.norm(exact)
    assert np.linalg.norm(got - exact) <= allowed


@pytest.mark.parametrize("case", CASES)
def test_latency(target, record, case):
    """Percentiles on the device, a model on the simulator; at the paper's shapes xuv beats dense."""
    row = {"case": case, "target": target.name, **target.latency_us(case)}
    record(row)
    assert row["us"] > 0
    if PAPER in case and case.startswith("xuv"):
        dense = target.latency_us(case.replace("xuv", "dense"))
        assert row["us"] < dense["us"]


@pytest.mark.parametrize("case", CASES)
def test_traffic(target, record, case, tmp_path):
    """No spill, every input read at least once, and HBM bytes within 5 % of the simulator's counts.

    On the simulator the last part compares the counts with themselves; on the device it is the question.
    """
    moved, counted = target.traffic(case, tmp_path), kernel_targets.simulated_counts(case)
    record({"case": case, "target": target.name, "simulated": counted, **moved})
    assert moved["spill_save_bytes"] == moved["spill_reload_bytes"] == 0
    assert moved["hbm_read_bytes"] >= sum(2 * a * b for call in CASES[case] for a, b in call.shapes)
    for name in ("hbm_read_bytes", "hbm_write_bytes"):
        assert moved[name] == pytest.approx(counted[name], rel=0.05)


def test_profile_summaries_are_read_at_any_depth_and_gaps_are_named():
    fields = {name: number for number, name in enumerate(kernel_targets.PROFILE_FIELDS)}
    assert kernel_targets.summary_fields([{"nc_0": {"data_movement": fields}}]) == fields
    with pytest.raises(AssertionError, match="spill_save_bytes"):
        kernel_targets.summary_fields({"hbm_read_bytes": 1, "hbm_write_bytes": 1, "spill_reload_bytes": 0})
