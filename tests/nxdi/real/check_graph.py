"""The traced MLP: one collective, as the dense one has, and every factor an operand of one kernel and nothing else."""

import pytest
import ranks
import torch
from check_logits import save_interpolative
from cpu_models import app_class, load_on_cpu
from tiny_models import save_dense, save_factored

from nxdi_svd_plugin.nxdi import device

SHARED = [(1, 1), (1, 2), (2, 1), (2, 2), (4, 2), (2, 4)]
"""(groups, tp)."""
WIDTH = 1024
LIBRARY = torch.library.Library("nxdi_svd_test", "DEF")
LIBRARY.define("up_gate(Tensor x, Tensor[] factors, int groups, int rows) -> Tensor[]")
LIBRARY.define("down(Tensor[] operands, int hidden) -> Tensor")
LIBRARY.define("mlp(Tensor x, Tensor[] factors) -> Tensor")
LIBRARY.impl(
    "up_gate",
    lambda x, factors, groups, rows: [x.new_zeros(rows, len(x)) for _ in range(groups)],
    "CompositeExplicitAutograd",
)
LIBRARY.impl(
    "down", lambda operands, hidden: operands[0].new_zeros(operands[0].shape[1], hidden), "CompositeExplicitAutograd"
)
LIBRARY.impl("mlp", lambda x, factors: torch.zeros_like(x), "CompositeExplicitAutograd")


def flat(factors):
    return [tensor for each in factors for tensor in (each if isinstance(each, list) else [each])]


def with_opaque_kernels(mlp, hidden):
    """The kernels as operators that a trace does not look into."""
    rows = mlp.gate_proj.share
    operators = torch.ops.nxdi_svd_test

    def up_gate(x, factors):
        several = isinstance(factors[0], list)
        made = operators.up_gate(x, flat(factors), len(factors[0]) if several else 1, rows)
        return tuple(made) if several else made[0]

    device.runs_kernels = lambda x: True
    device.kernel_calls = lambda: device.Calls(
        lambda x, *factors, pivots: up_gate(x, factors),
        lambda *operands, pivots: operators.down(flat(operands), hidden),
        lambda x, *factors, pivots: operators.mlp(x, flat(factors)),
    )


def traced(directory, tp, plugin, tokens):
    """(names of the collectives, for each parameter the operators that read it) of the first layer's MLP."""
    from torch.fx.experimental.proxy_tensor import make_fx

    options = {"mlp_impl": "svd_fused"} if plugin else {}
    mlp = load_on_cpu(app_class("llama", plugin), directory, tp_degree=tp, **options).models[0].model.layers[0].mlp
    x = torch.zeros(1, tokens, 44)
    if plugin:
        with_opaque_kernels(mlp, 44)
    names = [name for name, _ in mlp.named_parameters()]

    def call(x, *parameters):
        return torch.func.functional_call(mlp, dict(zip(names, parameters, strict=True)), (x,))[0]

    graph = make_fx(call)(x, *mlp.parameters()).graph
    read, collectives = [node for node in graph.nodes if node.op == "placeholder"][1:], []
    for node in graph.nodes:
        if node.op == "call_function" and getattr(node.target, "namespace", "") in ("c10d", "_c10d_functional"):
            collectives.append(str(node.target))
    return collectives, {
        name: [str(user.target) for user in node.users] for name, node in zip(names, read, strict=True)
    }


def in_form(form, dense, target, groups, tp):
    """Pairs, or pivots that are one tile on every core."""
    if form == "pair":
        return save_factored(dense, target, 40, groups=groups)
    tile = 128 * max(1, tp // groups)
    pivots = {"gate_proj": ((0, tile),), "up_proj": ((tile, 2 * tile),), "down_proj": ((0, tile),)}
    return save_interpolative(dense, target, pivots, groups=groups)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    sizes = {"vocab_size": 260, "intermediate_size": WIDTH, "num_hidden_layers": 1}
    return save_dense(tmp_path_factory.mktemp("graph") / "dense", "llama", **sizes)


@pytest.mark.parametrize(("form", "tokens"), [("pair", 4), ("interpolative", 200)])
@pytest.mark.parametrize(("groups", "tp"), SHARED)
def test_one_collective_and_one_reader_of_every_factor(groups, tp, form, tokens, dense, tmp_path):
    """Of a few tokens all readers are one kernel."""
    directory = in_form(form, dense, tmp_path / "svd", groups, tp)
    ours, stock = (ranks.run(tp, traced, folder, tp, folder is directory, tokens) for folder in (directory, dense))
    for (collectives, readers), (theirs, _) in zip(ours, stock, strict=True):
        assert collectives == theirs and len(collectives) == (tp > 1)
        assert len(readers) == 6 * max(1, groups // tp)
        for name, users in readers.items():
            expected = "mlp" if tokens == 4 else "down" if name.startswith("down_proj") else "up_gate"
            assert users == [f"nxdi_svd_test.{expected}.default"], (name, users)
