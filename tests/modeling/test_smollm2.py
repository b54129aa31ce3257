"""A trained model in the compressed form: at full rank SmolLM2 keeps its perplexity and its answers."""

import shutil

import pytest
import torch
from tiny_models import save_factored

import nxdi_svd_plugin
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer

TEXT = "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is named after the "


@pytest.mark.slow
def test_full_rank_is_the_dense_model(smollm2, tmp_path):
    full = save_factored(smollm2, tmp_path / "full", 576)
    ids = torch.tensor([load_tokenizer(smollm2)(TEXT)["input_ids"]])
    with torch.no_grad():
        exact = load_model(smollm2, torch.float64)(ids).logits
        dense = load_model(smollm2, torch.float32)(ids).logits
        factored = nxdi_svd_plugin.load_pretrained(full, dtype=torch.float32)(ids).logits
    # The factored MLP rounds its factors and one more product: three roundings where the dense one has one.
    assert (factored - exact).abs().max() <= 3 * (dense - exact).abs().max()
    assert torch.equal(factored.argmax(-1), dense.argmax(-1))
    shutil.rmtree(full)
