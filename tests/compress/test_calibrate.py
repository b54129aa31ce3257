"""One layer in memory: what was run before is freed when the next is loaded, whatever cycles transformers leaves."""

import gc
import weakref

import pytest
import torch

from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.checkpoint.source import read_config
from nxdi_svd_plugin.compress.calibrate.layer import Collector, load_layer, run_sample

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_loading_a_layer_frees_the_one_before(family, request):
    directory = request.getfixturevalue(f"tiny_{family}")
    config, reader = read_config(directory), Reader(directory)

    def used(layer):
        model = load_layer(reader, config, layer, CPU)
        with Collector(model, config.hidden, CPU):
            run_sample(model, torch.ones(8, config.hidden))
        return weakref.ref(model.layers[0].mlp.up_proj.weight)

    gc.disable()
    try:
        before = used(0)
        load_layer(reader, config, 1, CPU)
        assert before() is None
    finally:
        gc.enable()
