"""Perplexity against a loop written from its definition, the windows, and a model whose perplexity is known."""

import math
import types

import pytest
import torch

from nxdi_svd_plugin.errors import CalibrationError, RecipeError
from nxdi_svd_plugin.evaluate.perplexity import measure, spans, token_ids
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def model(tiny_svd_llama):
    return load_model(tiny_svd_llama, torch.float64)


@pytest.mark.parametrize(
    ("tokens", "window", "stride", "expected"),
    [
        (10, 4, 4, [(0, 1, 4), (4, 5, 8), (8, 9, 10)]),
        (9, 4, 4, [(0, 1, 4), (4, 5, 8)]),  # the ninth token alone predicts nothing
        (10, 4, 2, [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)]),
        (10, 4, 3, [(0, 1, 4), (3, 4, 7), (6, 7, 10)]),
        (3, 8, 8, [(0, 1, 3)]),
    ],
)
def test_spans(tokens, window, stride, expected):
    assert list(spans(tokens, window, stride)) == expected


@pytest.mark.parametrize("tokens", [2, 7, 64, 65])
@pytest.mark.parametrize(("window", "stride"), [(2, 1), (8, 3), (8, 7), (64, 16)])
def test_overlapping_windows_score_every_token_but_the_first_once(tokens, window, stride):
    scored = [i for _, first, end in spans(tokens, window, stride) for i in range(first, end)]
    assert scored == list(range(1, tokens))


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (100, 100), (7, None)])
def test_equals_its_definition_token_by_token(model, window, stride):
    torch.manual_seed(0)
    ids = torch.randint(3, 259, (53,))
    losses = []
    for begin, first, end in spans(len(ids), window, stride or window):
        for position in range(first, end):
            with torch.no_grad():
                logits = model(ids[None, begin:position]).logits[0, -1]
            losses.append(-torch.log_softmax(logits.float(), -1)[ids[position]].item())
    result = measure(model, ids, window, stride)
    assert result.tokens == len(losses)
    # logits are float64, the loss float32: relative rounding 2^-24 of sums of about 50 losses
    assert result.nll == pytest.approx(sum(losses) / len(losses), rel=50 * 2**-24)
    assert result.perplexity == pytest.approx(math.exp(result.nll))
    assert result.dtype == "float64"


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    class Uniform(torch.nn.Module):
        config, name_or_path = types.SimpleNamespace(max_position_embeddings=32), ""
        device, dtype = torch.device("cpu"), torch.float32

        def get_input_embeddings(self):
            return types.SimpleNamespace(num_embeddings=37)

        def forward(self, ids, use_cache):
            return types.SimpleNamespace(logits=torch.zeros(*ids.shape, 37))

    assert measure(Uniform(), torch.arange(30), 8).perplexity == pytest.approx(37, rel=1e-6)


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [(513, None, "this model takes 2 to 512"), (1, None, "window is 1"), (8, 9, "stride is 9"), (8, 0, "stride is 0")],
)
def test_bad_windows_are_refused(model, window, stride, message):
    with pytest.raises(RecipeError, match=message):
        measure(model, torch.arange(3, 23), window, stride)


def test_tokens_of_a_text(tiny_llama):
    tokenizer = load_tokenizer(tiny_llama)
    assert len(token_ids(tokenizer, "three")) == 5
    assert len(token_ids(tokenizer, "three", max_tokens=3)) == 3
    with pytest.raises(CalibrationError, match="has 1 tokens"):
        token_ids(tokenizer, "x")
