"""`mlp_impl` in NxDI's configuration: how it arrives, survives, and what it refuses."""

import copy
import json
import shutil
import types

import pytest
import torch
from cpu_models import app_class, make_config
from neuronx_distributed_inference.models.config import NeuronConfig

from nxdi_svd_plugin.errors import CheckpointError, NxdiError

FAMILIES = pytest.mark.parametrize("family", ["llama", "qwen3"])


@pytest.fixture
def directory(family, request):
    return request.getfixturevalue(f"svd_{family}")


@FAMILIES
def test_it_survives_copying_saving_and_reloading(family, directory, tmp_path):
    app = app_class(family)
    config = copy.deepcopy(make_config(app, directory, mlp_impl="svd_fused", torch_dtype=torch.bfloat16))
    config.save(tmp_path)
    again = app.get_config_cls().load(tmp_path)
    assert again.neuron_config.mlp_impl == "svd_fused"
    assert again.neuron_config.torch_dtype == torch.bfloat16
    assert again.svd_config == config.svd_config
    assert type(again.neuron_config) is type(config.neuron_config)
    assert app(str(tmp_path) + "/").config.neuron_config.mlp_impl == "svd_fused"


@FAMILIES
def test_the_default_is_stock(family):
    assert app_class(family).get_neuron_config_cls()().mlp_impl == "dense"


@FAMILIES
def test_an_unknown_value(family):
    with pytest.raises(NxdiError, match="'svd_fuse' is unknown.*Did you mean 'svd_fused'"):
        app_class(family).get_neuron_config_cls()(mlp_impl="svd_fuse")


@FAMILIES
def test_factors_without_mlp_impl(family, directory):
    with pytest.raises(NxdiError, match="SVD-compressed.*set mlp_impl='svd_fused'"):
        make_config(app_class(family), directory)


@FAMILIES
@pytest.mark.parametrize("mlp_impl", ["svd", "svd_fused"])
def test_mlp_impl_without_factors(family, mlp_impl, request):
    with pytest.raises(NxdiError, match="no svd_config.*nxdi-svd compress"):
        make_config(app_class(family), request.getfixturevalue(f"tiny_{family}"), mlp_impl=mlp_impl)


@FAMILIES
def test_a_stock_neuron_config(family, directory):
    app = app_class(family)
    config = make_config(app, directory, mlp_impl="svd")
    with pytest.raises(NxdiError, match="NeuronConfig, which drops mlp_impl"):
        app(str(directory), config, neuron_config=NeuronConfig(mlp_impl="svd_fused"))


@FAMILIES
def test_tp_that_does_not_divide_the_heads(family, directory):
    with pytest.raises(NxdiError, match="tp_degree=3.*num_attention_heads=4"):
        make_config(app_class(family), directory, mlp_impl="svd", tp_degree=3)


def rewritten(directory, target, change):
    """A copy of a directory whose svd_config was changed in place."""
    shutil.copytree(directory, target)
    config = json.loads((target / "config.json").read_text())
    change(config["svd_config"])
    (target / "config.json").write_text(json.dumps(config))
    return target


@FAMILIES
def test_pivots_that_do_not_divide(family, directory, tmp_path):
    def add_pivots(svd_config):
        svd_config["layers"]["1"]["up_proj"] = {"form": "interpolative", "rank": 6, "pivots": [[0, 6]]}

    with_pivots = rewritten(directory, tmp_path / "pivots", add_pivots)
    make_config(app_class(family), with_pivots, mlp_impl="svd", tp_degree=2)
    with pytest.raises(NxdiError, match="tp_degree=4: layer 1: .*do not divide over 4 cores"):
        make_config(app_class(family), with_pivots, mlp_impl="svd", tp_degree=4)


@FAMILIES
def test_another_format_version(family, directory, tmp_path):
    old = rewritten(directory, tmp_path / "old", lambda svd_config: svd_config.update(format_version=1))
    with pytest.raises(CheckpointError, match="format_version 1.*nxdi-svd compress"):
        make_config(app_class(family), old, mlp_impl="svd")


def lora(*targets):
    return types.SimpleNamespace(target_modules=list(targets))


REFUSED = [
    ("mlp_kernel_enabled", True, {}),
    ("mlp_tkg_nki_kernel_enabled", True, {}),
    ("mlp_kernel_fuse_residual_add", True, {}),
    ("quantized_mlp_kernel_enabled", True, {}),
    ("rmsnorm_quantize_kernel_enabled", True, {}),
    ("activation_quantization_type", "dynamic", {}),
    ("quantized", True, {}),
    ("mlp_cp_degree", 2, {}),
    ("padded_hidden_size", 128, {}),
    ("padded_intermediate_size", 128, {}),
    ("enable_fused_speculation", True, {}),
    ("enable_eagle_speculation", True, {}),
    ("is_eagle_draft", True, {}),
    ("is_medusa", True, {}),
    ("lora_config", lora("q_proj", "mlp.up_proj"), {}),
    ("logical_nc_config", 2, {"mlp_impl": "svd_fused"}),
]


@pytest.mark.parametrize(("option", "value", "more"), REFUSED, ids=[row[0] for row in REFUSED])
def test_an_incompatible_option_is_named(option, value, more, svd_llama):
    """Set on the finished neuron config: NxDI's constructor has its own assertions on combinations."""
    app = app_class("llama")
    config = make_config(app, svd_llama, **{"mlp_impl": "svd", **more})
    setattr(config.neuron_config, option, value)
    with pytest.raises(NxdiError, match=f"mlp_impl='svd.*does not go with {option}="):
        app(str(svd_llama), config)


@pytest.mark.parametrize(("option", "value"), [("hidden_act", "gelu"), ("mlp_bias", True)])
def test_an_incompatible_model_is_named(option, value, svd_llama):
    app = app_class("llama")
    config = make_config(app, svd_llama, mlp_impl="svd")
    setattr(config, option, value)
    with pytest.raises(NxdiError, match=f"does not go with {option}="):
        app(str(svd_llama), config)


@pytest.mark.parametrize(("option", "value"), [("lora_config", lora("q_proj")), ("logical_nc_config", 2)])
def test_a_compatible_value_is_not_refused(option, value, svd_llama):
    config = make_config(app_class("llama"), svd_llama, mlp_impl="svd")
    setattr(config.neuron_config, option, value)
    config.validate_config()


def test_options_of_a_constructor_are_refused_too(svd_llama):
    with pytest.raises(NxdiError, match="mlp_kernel_enabled"):
        make_config(app_class("llama"), svd_llama, mlp_impl="svd_fused", mlp_kernel_enabled=True)
