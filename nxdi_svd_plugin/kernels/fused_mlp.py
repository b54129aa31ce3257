"""The whole MLP of a few tokens in one kernel: (silu(X·U_gate·V_gate) * (X·U_up·V_up))·U_down·V_down."""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.checks import planned_mlp
from nxdi_svd_plugin.kernels.nki import jit, nl
from nxdi_svd_plugin.kernels.stages.groups import both, dtypes_of, groups_of, shapes_of
from nxdi_svd_plugin.kernels.stages.load import fp32_identity, load_rows_transposed
from nxdi_svd_plugin.kernels.stages.mlp import expand_sum, swiglu
from nxdi_svd_plugin.kernels.stages.project import project
from nxdi_svd_plugin.kernels.tiling.decode import MlpPlan
from nxdi_svd_plugin.stored.runs import Runs


def mlp_kernel(
    x: Any,
    u_gate: Any,
    v_gate: Any,
    u_up: Any,
    v_up: Any,
    u_down: Any,
    v_down: Any,
    pivots: tuple[Runs, Runs, Runs] = ((), (), ()),
) -> Any:
    """The MLP of x [S, H], S at most 128, as [S, H]: what `up_gate` and `down` make, with H in SBUF all the time.

    Args:
        x: HBM [S, H], bf16, fp16 or fp32. It is read, and transposed, once.
        u_gate, ...: HBM, the packed pairs of gate and up (`pack(u, v, kernel="up_gate")`) and of down. For several
            groups, slices of the intermediate neurons that are factored on their own: lists with a tensor a group, of
            the same shapes in all; the groups' outputs are summed in PSUM. (NKI takes lists of tensors since SDK 2.25:
            aws-neuron-sdk v2.25.0, release-notes/2.25.0/nki.rst.)
        pivots: of gate, up and down: runs of 128-row tiles of a group's neurons, as `up_gate` and `down` take them. If
            there are any, all six factors are packed with `interpolative=True`, so that they agree on the order of I.
    Returns: HBM [S, H] of x's dtype, stored at once. Sums are fp32; X·U, SwiGLU, H·U and the output are rounded once.
    Raises KernelError if shapes or dtypes do not fit together, S is larger or the tokens do not fit into SBUF.
    """
    us_gate, vs_gate, us_up, vs_up = groups_of(u_gate), groups_of(v_gate), groups_of(u_up), groups_of(v_up)
    us_down, vs_down = groups_of(u_down), groups_of(v_down)
    shapes = []
    for factor in (us_gate, vs_gate, us_up, vs_up, us_down, vs_down):
        shapes.append(shapes_of(factor))
    dtypes = dtypes_of((groups_of(x), us_gate, vs_gate, us_up, vs_up, us_down, vs_down))
    plan = planned_mlp(tuple(x.shape), tuple(shapes), dtypes, pivots)
    tokens, hidden = plan.up.tokens, plan.up.inputs
    out = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.shared_hbm)
    identity = fp32_identity(x)
    bias = nl.zeros((PARTITIONS, 1), dtype=nl.float32, buffer=nl.sbuf)
    xt = nl.ndarray((PARTITIONS, plan.up.input_tiles * tokens), dtype=x.dtype, buffer=nl.sbuf)
    load_rows_transposed(xt, x, 0, tokens, 0, hidden, plan.up.x_columns, identity)
    ts = []
    for u in us_down:
        ts.append(nl.ndarray((PARTITIONS, tiles(plan.down.ranks[0]) * tokens), dtype=u.dtype, buffer=nl.sbuf))
    for g, t in enumerate(ts):
        _group(t, xt, us_gate[g], vs_gate[g], us_up[g], vs_up[g], us_down[g], bias, plan)
    y = nl.ndarray((tokens, hidden), dtype=x.dtype, buffer=nl.sbuf)
    expand_sum(y, ts, vs_down, plan)
    nl.store(out[0:tokens, 0:hidden], value=y[0:tokens, 0:hidden])
    return out


def _group(
    t: Any,
    xt: Any,
    u_gate: Any,
    v_gate: Any,
    u_up: Any,
    v_up: Any,
    u_down: Any,
    bias: Any,
    plan: MlpPlan,
) -> None:
    """t = (H·U_down)ᵀ of one group's neurons H, from Xᵀ."""
    tokens, pieces = plan.up.tokens, plan.up.strips[0].subs[0].pieces
    gates = []
    ups = []
    sums = []
    gates.append(nl.ndarray((PARTITIONS, tiles(plan.up.ranks[0]) * tokens), dtype=xt.dtype, buffer=nl.sbuf))
    ups.append(nl.ndarray((PARTITIONS, tiles(plan.up.ranks[1]) * tokens), dtype=xt.dtype, buffer=nl.sbuf))
    sums.append(t)
    project(gates, u_gate, xt, pieces, plan.up, plan.up.ranks[0])
    project(ups, u_up, xt, pieces, plan.up, plan.up.ranks[1])
    h = nl.ndarray((PARTITIONS, plan.down.input_tiles * tokens), dtype=xt.dtype, buffer=nl.sbuf)
    swiglu(h, both(gates, ups), both(v_gate, v_up), bias, plan)
    project(sums, u_down, h, pieces, plan.down, plan.down.ranks[0], plan.down.pivots)


mlp = jit(mlp_kernel)
