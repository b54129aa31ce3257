"""Predicted against measured loss of each layer, on a tiny model where the prediction has to hold."""

import json

import pytest
import torch

from nxdi_svd_plugin.compress.pipeline import compress
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.evaluate.layer_loss import add_to_report, measure_layers, rank_correlation
from nxdi_svd_plugin.recipe import from_dict


def test_rank_correlation_of_known_orders():
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    # d = (0, 1, 1, 0): 1 - 6 * 2 / (4 * 15)
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert rank_correlation([1.0], [2.0]) != rank_correlation([1.0], [2.0])


def test_prediction_orders_the_layers(tiny_llama, tmp_path):
    """Very different ranks by layer: the measured KL has the predicted order and magnitude, and reaches the report."""
    recipe = {"block": 4, "allocation": "uniform", "calibration": {"samples": 8, "length": 64}}
    ranks = {f"{i}.{name}": rank for i, rank in ((0, 8), (1, 36), (2, 24)) for name in ("gate_proj", "up_proj")}
    recipe |= {"ranks": ranks, "dense": ["down_proj"], "damping": 1e-3}
    compress(tiny_llama, tmp_path / "out", from_dict(recipe), progress=False)
    ids = torch.randint(3, 259, (256,), generator=torch.Generator().manual_seed(0))
    losses = measure_layers(tiny_llama, tmp_path / "out", ids, 64)
    assert losses.rank_correlation == pytest.approx(1) and losses.tokens == 256
    assert all(m > 0 for m in losses.measured)
    add_to_report(tmp_path / "out", losses)
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["layer_losses"]["rank_correlation"] == losses.rank_correlation and saved["matrices"]


def test_a_report_without_predictions_is_refused(tiny_llama, tmp_path):
    recipe = from_dict({"recipe": "paper", "block": 4, "calibration": {"samples": 2, "length": 40}})
    compress(tiny_llama, tmp_path / "out", recipe, progress=False)
    with pytest.raises(CheckpointError, match="objective two_sided"):
        measure_layers(tiny_llama, tmp_path / "out", torch.arange(3, 67), 32)
