"""With `mlp_impl` unset the plugin's classes are NxDI's; with factors no dense MLP is built."""

import pytest
import ranks
import torch
from check_logits import PROMPT, STEPS
from cpu_models import app_class, load_on_cpu, run_model
from neuronx_distributed.parallel_layers import layers


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_dense_is_bit_identical_to_stock(family, tp, request):
    directory = request.getfixturevalue(f"svd_{family}").parent / "dense"
    ours = ranks.run(tp, run_model, family, directory, PROMPT, STEPS, tp_degree=tp)
    stock = ranks.run(tp, run_model, family, directory, PROMPT, STEPS, plugin=False, tp_degree=tp)
    for mine, theirs in zip(ours, stock, strict=True):
        assert torch.equal(mine["logits"], theirs["logits"])


def built_linears(family, directory, **options):
    """(in, out) of every parallel linear layer that NxDI builds while it loads the model, and the MLPs' types."""
    built = []

    def record(cls):
        original = cls.__init__

        def init(self, input_size, output_size, *args, **kwargs):
            built.append((input_size, output_size))
            original(self, input_size, output_size, *args, **kwargs)

        cls.__init__ = init

    record(layers.ColumnParallelLinear)
    record(layers.RowParallelLinear)
    model = load_on_cpu(app_class(family), directory, **options)
    decoder = model.models[0].model
    return built, [type(layer.mlp).__name__ for layer in decoder.layers], model.config.intermediate_size


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_no_dense_mlp_is_built(family, request):
    directory = request.getfixturevalue(f"svd_{family}")
    [(built, mlps, intermediate)] = ranks.run(1, built_linears, family, directory, mlp_impl="svd")
    assert mlps == ["SvdMLP"] * 3
    assert intermediate == 90  # restored
    assert [pair for pair in built if 90 in pair] == [(90, 44)]  # layer 1's down projection, which is dense


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_interceptor_sees_stock_mlps(family, request):
    directory = request.getfixturevalue(f"svd_{family}").parent / "dense"
    [(built, mlps, _)] = ranks.run(1, built_linears, family, directory)
    assert mlps == ["NeuronLlamaMLP"] * 3
    assert sum(90 in pair for pair in built) == 9
