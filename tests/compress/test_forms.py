"""A form is one file: an imaginary one is added here, compressed with, stored, loaded; an unknown one falls nowhere."""

import json
import math
import shutil
import sys
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from nxdi_svd_plugin.checkpoint.source import read_config
from nxdi_svd_plugin.checkpoint.verify import verify
from nxdi_svd_plugin.cli.main import main
from nxdi_svd_plugin.compress import forms
from nxdi_svd_plugin.compress.plan.ranks import decide_ranks
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.errors import CheckpointError, RecipeError, SvdError
from nxdi_svd_plugin.factorize.rank import block_rank
from nxdi_svd_plugin.modeling.load import load_model, load_pretrained
from nxdi_svd_plugin.recipe import from_dict
from nxdi_svd_plugin.report.record import recorded
from nxdi_svd_plugin.stored.projection import LowRank

IMAGINARY = '''
"""Pairs whose near factor has orthonormal columns, and which cost twice as much."""

import torch

from nxdi_svd_plugin.compress.forms import Stored
from nxdi_svd_plugin.stored.projection import LowRank


class Imaginary:
    def cost(self, m, n, rank):
        return 2 * rank * (m + n)

    def planned(self, rank, groups=1):
        return LowRank(groups * rank, (), groups)

    def fits(self, rank, m, n, block):
        return rank == 7

    def store(self, truncated, part, block):
        factors, stored = {}, {}
        for name, groups in truncated:
            q, r = zip(*(torch.linalg.qr(t.near) for t in groups))
            factors[name] = torch.cat(q, 1), torch.cat([b @ t.far for b, t in zip(r, groups)], 1)
            stored[name] = self.planned(r[0].shape[0], len(groups))
        return Stored(stored, factors, None, {name: {} for name in factors})


FORM = Imaginary()
'''
SMALL = {"tp_degree": 1, "block": 4, "ratio": 0.2, "calibration": {"samples": 3, "length": 24}}


@pytest.fixture
def imaginary(tmp_path, monkeypatch):
    (tmp_path / "forms").mkdir()
    (tmp_path / "forms" / "imaginary.py").write_text(IMAGINARY)
    monkeypatch.setattr(forms, "__path__", [*forms.__path__, str(tmp_path / "forms")])
    monkeypatch.delitem(sys.modules, "nxdi_svd_plugin.compress.forms.imaginary", raising=False)


@pytest.mark.parametrize(
    "method", [{}, {"allocation": "uniform"}, {"objective": "input", "allocation": "uniform", "tp_degree": 2}]
)
def test_one_file_makes_a_form(imaginary, method, tiny_llama, tmp_path):
    """Plan, allocation, factors, checkpoint, transformers, verify and report take it from the file alone."""
    groups = method.get("tp_degree", 1)
    recipe = from_dict({**SMALL, **method, "form": "imaginary", "ranks": {"0.up_proj": 7 * groups}})
    report = compress(tiny_llama, tmp_path / "out", recipe, progress=False)
    low = [record for record in report.matrices if record.rank]
    assert low and {record.projection for record in low} <= {LowRank(groups * r, (), groups) for r in range(1, 44)}
    assert next(r.rank for r in report.matrices if (r.layer, r.name) == (0, "up_proj")) == 7 * groups
    weights = load_file(tmp_path / "out" / "model.safetensors")
    u = weights["model.layers.0.mlp.up_proj.u"].double()
    for own in u.chunk(groups, 1):
        torch.testing.assert_close(own.T @ own, torch.eye(7, dtype=torch.float64), rtol=0, atol=7 * 2**-23)
    if method:  # Eq. 5 by hand: the eight others save what the one of rank 7 leaves to do, at twice a pair's cost
        sides = 44 + 90 / groups
        kept = 44 * 90 - (0.2 * 9 * 44 * 90 - (44 * 90 - 7 * groups * sides)) / 8
        each = 4 * math.floor(kept / groups / (2 * sides) / 4 + 0.5)
        assert {record.rank for record in low} - {7 * groups} == {each * groups}
    assert all(check.ok for check in verify(tmp_path / "out", recorded))
    load_pretrained(tmp_path / "out")


def test_it_gives_the_function_of_the_pair(imaginary, tiny_llama, tmp_path):
    """The same subspaces at the same ranks: only the parametrisation differs."""
    base = {**SMALL, "allocation": "uniform", "ratio": None, "ranks": dict.fromkeys(("gate_proj", "up_proj"), 7)}
    base |= {"ranks": {**base["ranks"], "down_proj": 7}, "block": 1, "refit": False}  # which rounds products
    logits = []
    for form in ("pair", "imaginary"):
        compress(tiny_llama, tmp_path / form, from_dict({**base, "form": form}), progress=False)
        with torch.no_grad():
            logits.append(load_model(tmp_path / form, dtype=torch.float64)(torch.arange(3, 40)[None]).logits)
    # factors rounded to float32, three layers
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4 * float(logits[0].abs().max()))


def test_without_its_file_it_is_refused_by_name(tiny_llama, tmp_path, capsys):
    recipe = from_dict({**SMALL, "form": "imaginary"})
    with pytest.raises(RecipeError, match="form is 'imaginary'; expected one of interpolative, pair"):
        compress(tiny_llama, tmp_path / "out", recipe)
    assert main(["plan", "--model", str(tiny_llama), "--form", "pairs"]) == 2
    assert "did you mean 'pair'?" in capsys.readouterr().err


def test_a_stored_form_that_nobody_listed_falls_nowhere(tiny_svd_llama, tmp_path, capsys):
    """Every reader of svd_config refuses it by name: transformers, verify, inspect, bench."""
    bad = shutil.copytree(tiny_svd_llama, tmp_path / "bad")
    config = json.loads((bad / "config.json").read_text())
    config["svd_config"]["layers"]["0"]["up_proj"] = {"form": "imaginary", "rank": 4}
    (bad / "config.json").write_text(json.dumps(config))
    said = "projection form 'imaginary' is unknown; this version reads dense, pair, interpolative"
    for read in (load_pretrained, partial(verify, recorded=recorded)):
        with pytest.raises(CheckpointError, match=said):
            read(bad)
    for command in (["inspect", str(bad)], ["bench", str(bad), "--tp", "1", "--tokens", "1"], ["verify", str(bad)]):
        assert main(command) == 1
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", forms.names())
def test_the_cost_is_what_is_stored(name):
    form = forms.named(name)
    for rank, groups in ((1, 1), (5, 1), (8, 1), (3, 5)):
        planned = form.planned(rank, groups)
        assert groups * form.cost(13, 40 // groups, rank) == planned.parameters(13, 40)


@pytest.mark.parametrize("name", forms.names())
def test_choices_save_numbers_and_stay_below_full_rank(name):
    form = forms.named(name)
    assert all(form.cost(13, 40, r) < 13 * 40 and r % 3 == 0 and r < 13 for r in forms.choices(form, 13, 40, 3))
    assert forms.choices(form, 13, 40, 3)[-1] == (9 if name == "pair" else 12)


def test_eq5_takes_any_rising_cost():
    """block_rank with cost r^2: the largest k whose threshold fits, against a direct search."""
    for block in (1, 3, 8):
        rank = block_rank(0.5, 40, 60, block, 0.5, lambda m, n, r: r * r)
        exact = math.sqrt(0.5 * 40 * 60)
        assert rank == block * math.floor(exact / block + 0.5)


def test_a_rank_that_the_form_cannot_store_is_refused(tiny_llama):
    for form, rank in (("interpolative", 6), ("interpolative", 44), ("pair", 45)):
        with pytest.raises(SvdError, match="rank"):
            decide_ranks(read_config(tiny_llama), from_dict({**SMALL, "form": form, "ranks": {"up_proj": rank}}))
