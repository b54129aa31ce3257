"""The weights that NxD's layout optimisation must leave alone: the kernels' own, by their names in the graph."""

import pytest
import ranks
from check_logits import save_interpolative
from cpu_models import app_class, load_on_cpu
from neuronx_distributed.trace import model_builder
from tiny_models import save_factored


def named(directory, family, mlp_impl, tp):
    """(names given to NxD's builder, all parameters of the model as a traced graph names them)."""
    model = load_on_cpu(app_class(family), directory, mlp_impl=mlp_impl, tp_degree=tp)
    for _ in range(2):
        builder = model.get_builder()
    parameters = model.models[0].model.named_parameters()
    return builder.weights_to_skip_layout_optimization, [name.replace(".", "->") for name, _ in parameters]


def skipped(asked, parameters):
    """What NxD makes of the names: regular expressions since 0.16, the names themselves before."""
    match = getattr(model_builder, "_check_weight_name_regex", lambda names, known: names & known.keys())
    return match(set(asked), dict.fromkeys(parameters))


@pytest.mark.parametrize(("groups", "tp"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_the_kernels_weights_are_named(groups, tp, svd_llama, tmp_path):
    kept = ((1, "down_proj"), (2, "gate_proj"))
    directory = save_factored(svd_llama.parent / "dense", tmp_path / "svd", 20, kept, groups=groups)
    for asked, parameters in ranks.run(tp, named, directory, "llama", "svd_fused", tp):
        mlps = {name for name in parameters if "->mlp->" in name}
        dense = {name for name in mlps if name.endswith("->weight")}
        alone = {name for name in mlps if "layers->2->mlp->up_proj" in name}  # the kernel takes gate and up together
        assert len(dense) == 2 and len(alone) == 2 * max(1, groups // tp)
        assert skipped(asked, parameters) == mlps - dense - alone == set(asked) and len(set(asked)) == len(asked)


def test_products_leave_the_layout_to_the_compiler(svd_qwen3, tmp_path):
    [(asked, _)] = ranks.run(1, named, svd_qwen3, "qwen3", "svd", 1)
    assert asked == []
    half_tiles = {name: ((0, 10),) for name in ("gate_proj", "up_proj", "down_proj")}
    directory = save_interpolative(svd_qwen3.parent / "dense", tmp_path / "svd", half_tiles)
    [(asked, _)] = ranks.run(1, named, directory, "qwen3", "svd_fused", 1)
    assert asked == []
