"""The paper's recipe on a trained model: uniform ranks, no training, against SVD-LLM's whitening at the same ranks."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.evaluate.perplexity import measure, token_ids
from nxdi_svd_plugin.modeling.load import load_pretrained
from nxdi_svd_plugin.recipe import Calibration, Recipe
from nxdi_svd_plugin.texts import HELDOUT, read_text

WINDOW, WINDOWS = 512, 8
IN_DOMAIN = Path(__file__).parents[2] / "benchmarks" / "data" / "generated_heldout.txt"
# Perplexity over dense of SVD-LLM's own code at these ranks (16 x 2048 calibration tokens), from issue 2: its range on
# two texts, in domain and out of domain. Our texts are others, so a value is held against the end of the range;
# found here with 28,672 tokens: 1.65 / 2.14, 1.84 / 2.68 and 2.42 / 4.77. Ratio: (rank, low, high).
SVD_LLM = {0.05: (397, 1.5, 2.6), 0.10: (377, 1.7, 3.5), 0.20: (335, 2.2, 7.1)}


def perplexities(model, directory):
    """(in domain, out of domain): sampled text kept out of the calibration text, and pydoc_data.topics."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    texts = IN_DOMAIN.read_text(encoding="utf-8"), read_text(HELDOUT).content
    return [measure(model, token_ids(tokenizer, text, WINDOWS * WINDOW), WINDOW).perplexity for text in texts]


@pytest.fixture(scope="module")
def dense(smollm2):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2).to(torch.float32).eval()
    return perplexities(model, smollm2)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", SVD_LLM)
def test_no_worse_than_svd_llm_whitening(smollm2, dense, tmp_path, ratio):
    rank, _, high = SVD_LLM[ratio]
    recipe = Recipe(ratio=ratio, block=1, tau=1.0, calibration=Calibration(samples=48, length=512))
    report = compress(smollm2, tmp_path / "out", recipe)
    assert {record["rank"] for record in report.matrices} == {rank}
    assert ratio <= report.ratio["mlp"] < ratio + (576 + 1536) / (576 * 1536)  # less than one rank below
    found = perplexities(load_pretrained(tmp_path / "out"), smollm2)
    relative = [value / base for value, base in zip(found, dense, strict=True)]
    assert all(value > 1 for value in relative)
    assert max(relative) <= high, relative
