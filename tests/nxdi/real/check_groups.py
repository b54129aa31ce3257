"""MLPs in several groups of neurons: logits against transformers, parameters of a core, and what is refused or said."""

import json
import logging
import re
import shutil

import pytest
import ranks
import torch
from check_logits import PROMPT, STEPS, save_interpolative
from cpu_models import app_class, dense_reference, load_on_cpu, make_config, reference_logits, run_model
from safetensors.torch import load_file
from tiny_models import save_factored

from nxdi_svd_plugin import load_pretrained
from nxdi_svd_plugin.errors import CheckpointError, NxdiError

SHARED = [(2, 1), (2, 2), (2, 4), (4, 2), (4, 4)]
"""(groups, tp): several groups on a core, one, and a group on several cores."""
WIDTHS = {2: ((0, 78), (1, 50), (2, 88)), 4: ((0, 76), (1, 52), (2, 88))}
"""Neurons that the layers keep of 90, by groups. Half of 78, shared by two cores, is odd: zeros are added."""
MIXED = ((0, "gate_proj"), (1, "down_proj"), (2, "up_proj"))
PIVOTS = {"gate_proj": ((0, 4), (8, 10)), "down_proj": ((4, 12),)}


def agree(directory, family, reference, tp, **options):
    results = ranks.run(tp, run_model, family, directory, PROMPT, STEPS, tp_degree=tp, **options)
    expected = reference_logits(reference, results[0]["tokens"], PROMPT.shape[1])
    for found in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=2e-5 * expected.abs().max())


def dense_of(family, request):
    return request.getfixturevalue(f"svd_{family}").parent / "dense"


PAIRS = [("llama", *shared, impl) for shared in SHARED for impl in ("svd", "svd_fused")]


@pytest.mark.parametrize(("family", "groups", "tp", "mlp_impl"), [*PAIRS, ("qwen3", 2, 2, "svd_fused")])
def test_pairs_beside_dense_projections(family, groups, tp, mlp_impl, request, tmp_path):
    """Layers of three widths, in each another projection dense; some groups do not divide over their cores."""
    directory = save_factored(dense_of(family, request), tmp_path / "svd", 20, MIXED, WIDTHS[groups], groups)
    agree(directory, family, dense_reference(directory, family), tp, mlp_impl=mlp_impl)


@pytest.mark.parametrize(("groups", "tp"), SHARED)
def test_interpolative_beside_dense_projections(groups, tp, request, tmp_path):
    directory = save_interpolative(dense_of("llama", request), tmp_path / "svd", PIVOTS, WIDTHS[4], groups)
    agree(directory, "llama", load_pretrained(directory, dtype=torch.float32), tp, mlp_impl="svd")


def test_sequence_parallelism(request, tmp_path):
    directory = save_factored(dense_of("llama", request), tmp_path / "svd", 20, MIXED, WIDTHS[2], 2)
    options = {"mlp_impl": "svd", "sequence_parallel_enabled": True, "is_continuous_batching": True}
    agree(directory, "llama", dense_reference(directory, "llama"), 2, **options)


def parameters_and_log(family, directory, tp, mlp_impl):
    """Numbers in the low-rank projections of this rank, and what is logged of their cost."""
    from nxdi_svd_plugin.nxdi.models import announce

    announce.cache_clear()
    records, handler = [], logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("nxdi_svd_plugin").addHandler(handler)
    options = {"sequence_parallel_enabled": True, "is_continuous_batching": True} if tp > 1 else {}
    model = load_on_cpu(app_class(family), directory, mlp_impl=mlp_impl, tp_degree=tp, **options)  # several submodels
    named = model.models[0].model.named_parameters()
    count = sum(p.numel() for name, p in named if re.search(r"_proj\.[uvc]\d*$", name))
    return count, [record for record in records if "per core beyond" in record]


@pytest.mark.parametrize(("groups", "tp"), SHARED)
def test_the_ranks_hold_the_file_once_or_say_what_they_repeat(groups, tp, request, tmp_path):
    """The near factors of a group on two cores are held twice; everything else, and all of it elsewhere, once."""
    directory = save_factored(dense_of("llama", request), tmp_path / "svd", 20, (), WIDTHS[4], groups)
    found = ranks.run(tp, parameters_and_log, "llama", directory, tp, "svd")
    stored = {name: t.numel() for name, t in load_file(directory / "model.safetensors").items() if ".mlp." in name}
    near = sum(n for name, n in stored.items() if re.search(r"(gate|up)_proj.u$|down_proj.v$", name))
    assert sum(count for count, _ in found) == sum(stored.values()) + (near if tp > groups else 0)
    extra = near // groups // 2 * 4  # bytes of float32, half of a core's near factors
    expected = f"tp_degree=4 on MLPs in 2 groups: .* whole on 2 cores, {extra} bytes per core beyond its share"
    for _, log in found:
        assert len(log) == (tp > groups) and all(re.match(expected, record) for record in log)


@pytest.mark.parametrize(
    ("groups", "tp", "works"), [(3, 2, "1, 3 or a multiple of 3"), (6, 4, "1, 2, 3, 6 or a multip")]
)
@pytest.mark.parametrize("mlp_impl", ["svd", "svd_fused"])
def test_a_degree_that_fits_no_groups_is_refused_before_loading(groups, tp, works, mlp_impl, request, tmp_path):
    directory = save_factored(dense_of("llama", request), tmp_path / "svd", 18, groups=groups)
    (directory / "model.safetensors").unlink()
    with pytest.raises(NxdiError, match=f"tp_degree={tp}: {groups} groups .* evenly on {tp} cores; use .* {works}"):
        make_config(app_class("llama"), directory, mlp_impl=mlp_impl, tp_degree=tp)


def regrouped(directory, target, groups):
    """The same tensors under another number of groups in svd_config."""
    shutil.copytree(directory, target)
    config = json.loads((target / "config.json").read_text())
    config["svd_config"]["groups"] = groups
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize("groups", [1, 5])
def test_tensors_in_other_groups_than_svd_config_says(groups, request, tmp_path):
    made = save_factored(dense_of("llama", request), tmp_path / "svd", 20, groups=2)
    bad = regrouped(made, tmp_path / "bad", groups)
    expected = rf"gate_proj.v has shape \[10, 90\]; config.json says \[{20 // groups}, 90\]"
    with pytest.raises(ranks.RankError, match=f"NxdiError: layers.0.mlp.{expected}"):
        ranks.run(1, load_on_cpu, app_class("llama"), bad, mlp_impl="svd")
    with pytest.raises(CheckpointError, match="gate_proj.v"):
        load_pretrained(bad)


def test_groups_that_do_not_divide_the_rank(request, tmp_path):
    made = save_factored(dense_of("llama", request), tmp_path / "svd", 20, groups=2)
    with pytest.raises(
        CheckpointError, match="layer 0: rank 20 in 3 groups: expected a rank .* that the groups divide"
    ):
        make_config(app_class("llama"), regrouped(made, tmp_path / "bad", 3), mlp_impl="svd")
