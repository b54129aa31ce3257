"""Interpolative, mixed and reordered checkpoints on the NxDI model at tp 1 and 2 against transformers."""

import logging

import pytest
import ranks
import torch
from cpu_models import app_class, reference_logits, run_model
from safetensors.torch import load_file, save_file
from tiny_models import save_dense

from nxdi_svd_plugin import load_pretrained
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.recipe import from_dict

PROMPT = torch.tensor([[5, 17, 201, 88, 3, 42, 9]])
STEPS = 4
RECIPE = {
    "block": 4,
    "ratio": 0.2,
    "drop": False,
    "dense": ["1.up_proj", "2.down_proj"],
    "calibration": {"samples": 4, "length": 40},
}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def made(request, tmp_path_factory):
    """(family, directory): interpolative projections beside dense ones, in layers with their own order of I."""
    folder = tmp_path_factory.mktemp(request.param)
    dense = save_dense(folder / "dense", request.param, intermediate_size=96, vocab_size=260)
    compress(dense, folder / "svd", from_dict(RECIPE), progress=False)
    return request.param, folder / "svd"


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("mlp_impl", ["svd", "svd_fused"])
def test_equals_transformers(made, tp, mlp_impl):
    family, directory = made
    results = ranks.run(tp, run_model, family, directory, PROMPT, STEPS, mlp_impl=mlp_impl, tp_degree=tp)
    model = load_pretrained(directory, dtype=torch.float32)
    expected = reference_logits(model, results[0]["tokens"], PROMPT.shape[1])
    for found in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=2e-5 * expected.abs().max())


def parameters_and_log(family, directory, tp):
    """Numbers in the MLPs of this rank, and what is logged while the model is built for the kernels."""
    from cpu_models import load_on_cpu

    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("nxdi_svd_plugin").addHandler(handler)
    model = load_on_cpu(app_class(family), directory, mlp_impl="svd_fused", tp_degree=tp)
    inner = model.models[0].model if hasattr(model, "models") else model
    count = sum(p.numel() for name, p in inner.named_parameters() if ".mlp." in name)
    return count, records


def test_parameters_are_those_of_the_form_and_the_fallback_is_announced_once(made):
    family, directory = made
    [(count, records)] = ranks.run(1, parameters_and_log, family, directory, 1)
    stored = load_file(directory / "model.safetensors")
    assert count == sum(t.numel() for name, t in stored.items() if ".mlp." in name)
    assert len([r for r in records if "interpolative" in r and "PyTorch" in r]) == 1


def lose_c(directory, target):
    import shutil

    shutil.copytree(directory, target)
    tensors = load_file(target / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith("_proj.c"))]
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_a_missing_c_is_refused(made, tmp_path):
    family, directory = made
    bad = lose_c(directory, tmp_path / "bad")
    with pytest.raises(ranks.RankError, match="lacks the MLP tensors"):
        ranks.run(1, run_model, family, bad, PROMPT, 1, mlp_impl="svd", tp_degree=1)


def on_trn1(family, directory):
    from nxdi_svd_plugin.nxdi import device

    device.plain_reason = lambda x: None
    return run_model(family, directory, PROMPT, 1, mlp_impl="svd_fused")


def test_pivots_without_a_kernel_take_the_plain_path_on_trn1_too(made):
    """No kernel is called (there is none here), and the result is that of mlp_impl="svd"."""
    family, directory = made
    [fused] = ranks.run(1, on_trn1, family, directory)
    [plain] = ranks.run(1, run_model, family, directory, PROMPT, 1, mlp_impl="svd", tp_degree=1)
    torch.testing.assert_close(fused, plain, rtol=0, atol=0)
