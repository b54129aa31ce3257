"""One layer in memory: nothing keeps a layer alive when its last user lets go, without Python's cycle collector."""

import gc
import weakref

import pytest
import torch

from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.checkpoint.source import read_config
from nxdi_svd_plugin.compress.calibrate.gradient import LayerBackward
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.calibrate.layer import Collector, load_layer, run_sample
from nxdi_svd_plugin.compress.calibrate.statistics import Statistics, statistics_shapes

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("way", ["forward", "backward"])
def test_a_layer_that_was_used_is_freed(family, way, request):
    directory = request.getfixturevalue(f"tiny_{family}")
    config, reader = read_config(directory), Reader(directory)
    groups = Groups(2, config.hidden, config.intermediate)

    def used(layer):
        model, sample = load_layer(reader, config, layer, CPU), torch.ones(8, config.hidden)
        kept = weakref.ref(model.layers[0].mlp.up_proj.weight)
        if way == "forward":
            with Collector(model, groups, Statistics.zero(statistics_shapes(groups, "input"), CPU)):
                run_sample(model, sample)
        else:
            sums = Statistics.zero(statistics_shapes(groups, "two_sided"), CPU)
            LayerBackward(model, groups, sums).gradient(sample, sample)
        return kept

    gc.disable()
    try:
        assert used(0)() is None
    finally:
        gc.enable()
