"""The kernel plan of one MLP at a tensor-parallel degree, with the reason in words: what `nxdi-svd plan` prints."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import CLOCK_HZ, DMA_BYTES_PER_SECOND, MODEL_BAND, PARTITIONS, SBUF_BUDGET
from nxdi_svd_plugin.kernels.tiling.blocks import Blocks, Plan, hbm_bytes, sbuf_bytes, u_load_bytes, v_load_bytes
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.decode import fits, load_bytes, mlp_bytes, reserved_bytes
from nxdi_svd_plugin.kernels.tiling.engines import engine_seconds, minimum_pe_cycles
from nxdi_svd_plugin.kernels.tiling.groups import calls_of
from nxdi_svd_plugin.kernels.tiling.loads import IN_FLIGHT
from nxdi_svd_plugin.kernels.tiling.mlp_work import mlp_work
from nxdi_svd_plugin.kernels.tiling.planner import choose
from nxdi_svd_plugin.stored.cores import sharing
from nxdi_svd_plugin.stored.dtypes import DTYPES
from nxdi_svd_plugin.stored.kernel_fit import kernel_fit
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import LowRank


@dataclass(frozen=True)
class KernelPlan:
    """The plan of one kernel call on one core: predicted bytes, modelled seconds, no device run."""

    kernel: str
    tokens: int
    groups: int
    """Of the intermediate neurons, that one call takes."""
    strips: list[tuple[int, list[int]]]
    """(number of equal strips, tokens of each sub-strip); none where X·U goes through HBM."""
    u_load_bytes: int
    v_load_bytes: int
    hbm_read_bytes: int
    hbm_write_bytes: int
    sbuf_peak_bytes: int
    """Per partition, one copy of every tile: what the simulator counts."""
    sbuf_reserved_bytes: int
    """Per partition, with two loads of every streamed operand in flight; at most SBUF_BUDGET."""
    arithmetic_intensity: float
    modelled_seconds: dict[str, float]
    bound: str
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def plan_chain(chain: Chain) -> KernelPlan:
    """The plan of one kernel call."""
    blocks = choose(chain)
    read, written = hbm_bytes(chain, blocks)
    seconds = engine_seconds(chain, blocks)
    bound = max(seconds, key=lambda engine: seconds[engine])
    return KernelPlan(
        kernel=chain.kernel,
        tokens=chain.tokens,
        groups=chain.groups,
        strips=[(count, list(strip)) for count, strip in blocks.groups] if isinstance(blocks, Blocks) else [],
        u_load_bytes=u_load_bytes(chain, blocks.buffers) if isinstance(blocks, Blocks) else 0,
        v_load_bytes=v_load_bytes(chain, blocks.buffers) if isinstance(blocks, Blocks) else 0,
        hbm_read_bytes=read,
        hbm_write_bytes=written,
        sbuf_peak_bytes=sbuf_bytes(chain, blocks),
        sbuf_reserved_bytes=sbuf_bytes(chain, blocks, IN_FLIGHT),
        arithmetic_intensity=chain.flops / (read + written),
        modelled_seconds=seconds,
        bound=bound,
        reason=_reason(chain, blocks, seconds, bound),
    )


def plan_call(up: Chain, down: Chain, groups: int) -> KernelPlan:
    """The plan of one call of `mlp`: the loads alone are chosen; what is reserved is a bound (tiling/decode.py)."""
    read, written = mlp_bytes(up, down, groups)
    loads = load_bytes(up, down)
    seconds = mlp_work(up, down, groups).seconds
    bound = max(seconds, key=lambda engine: seconds[engine])
    u_up, v_up, u_down, v_down = (f"{size / 1024:.1f}" for size in loads)
    return KernelPlan(
        kernel="mlp",
        tokens=up.tokens,
        groups=groups,
        strips=[(1, [up.tokens])],
        u_load_bytes=max(loads[0], loads[2]),
        v_load_bytes=max(loads[1], loads[3]),
        hbm_read_bytes=read,
        hbm_write_bytes=written,
        sbuf_peak_bytes=reserved_bytes(up, down, groups, in_flight=1),
        sbuf_reserved_bytes=reserved_bytes(up, down, groups),
        arithmetic_intensity=groups * (up.flops + down.flops) / (read + written),
        modelled_seconds=seconds,
        bound=bound,
        reason=f"Every weight is read once, in loads of {u_up} (U of gate and up), {v_up} (both V), {u_down} and "
        f"{v_down} KiB per partition (U and V of down), and nothing else but X and Y. "
        f"{_times(seconds)}: no plan avoids reading the weights once.",
    )


def plan_mlp(hidden: int, mlp: Mlp, tokens: int, dtype: str = "bfloat16", tp: int = 1) -> dict[str, KernelPlan]:
    """The plans of the kernels that run on one of `tp` cores: `mlp` where it takes so many tokens, else those of
    `up_gate` and `down` that take their projections (stored/kernel_fit.py).

    A core with several groups (stored/cores.py) runs `mlp` once, the plans of `up_gate` and `down` once or once a group
    (tiling/groups.py); their "groups" are those of one call.
    Raises KernelError if `tp` does not divide the width, the dtype is unknown or nothing fits into SBUF; SvdError if
    the groups do not go evenly on `tp` cores.
    """
    if dtype not in DTYPES:
        raise KernelError(f"dtype {dtype!r} is not supported by the kernels; use one of {', '.join(DTYPES)}")
    shared, itemsize = sharing(mlp.groups, tp), DTYPES[dtype].bytes
    fit, width = kernel_fit(mlp, tp), shard_width(mlp.width // mlp.groups, shared.cores)
    ranks = {name: p.rank // p.groups for name, p in mlp.items() if isinstance(p, LowRank)}

    def chain(kernel: str, inputs: int, outputs: int, *names: str) -> Chain:
        made = tuple(ranks[name] for name in names)
        return Chain(kernel, tokens, inputs, made, outputs, itemsize, pivots=tuple(fit.pivots[name] for name in names))

    chains = {}
    if fit.up_gate:
        chains["up_gate"] = chain("up_gate", hidden, width, "gate_proj", "up_proj")
    if fit.down:
        chains["down"] = chain("down", width, hidden, "down_proj")
    if len(chains) == 2 and fits(chains["up_gate"], chains["down"], shared.groups):
        return {"mlp": plan_call(chains["up_gate"], chains["down"], shared.groups)}
    several = {name: shared.groups // calls_of(chain, shared.groups) for name, chain in chains.items()}
    return {name: plan_chain(replace(chain, groups=several[name])) for name, chain in chains.items()}


def shard_width(intermediate: int, tp: int) -> int:
    """Intermediate neurons on one of `tp` cores.

    Raises KernelError if they are not equally many on every core.
    """
    if tp < 1 or intermediate % tp:
        raise KernelError(f"tp {tp} does not divide the intermediate size {intermediate}")
    return intermediate // tp


def _reason(chain: Chain, blocks: Plan, seconds: dict[str, float], bound: str) -> str:
    room = f"{sbuf_bytes(chain, blocks, IN_FLIGHT) / 1024:.0f} of {SBUF_BUDGET // 1024} KiB per partition"
    cause = f"{_times(seconds)}: {_why(chain, blocks, bound)}"
    return f"{_streams(blocks)}; with two loads in flight this takes {room}. {cause}."


def _streams(blocks: Plan) -> str:
    if not isinstance(blocks, Blocks):
        return "two matmuls in one kernel, X·U in HBM between them, which costs less than keeping it in SBUF"
    strips, subs = len(blocks.strips), sum(map(len, blocks.strips))
    if blocks.firsts:
        return (
            "a matmul for each X·U to HBM, whose results come back in strips, which moves less than making them there; "
            f"V is read {'once' if strips == 1 else f'{strips} times (once per strip)'}"
        )
    once = "once" if subs == 1 else f"{subs} times (once per sub-strip)"
    sums = (
        f"fp32 sums of X·U in SBUF, blocks of {blocks.buffers.split * PARTITIONS} inputs; "
        if blocks.buffers.split
        else ""
    )
    return f"{sums}U is read {once}, V {'once' if strips == 1 else f'{strips} times (once per strip)'}"


def _why(chain: Chain, blocks: Plan, bound: str) -> str:
    if bound == "tensor":
        return "the tensor engine is the bottleneck, as it should be"
    if bound == "dma":
        once = (chain.u_bytes + chain.v_bytes + chain.activation_bytes) / DMA_BYTES_PER_SECOND
        if once >= minimum_pe_cycles(chain) / CLOCK_HZ["pe"]:
            few = "so few tokens that reading the weights once takes longer than computing"
            thin = "the rank is so small that reading the input and writing the output takes longer than computing"
            return f"{few if chain.u_bytes + chain.v_bytes > chain.activation_bytes else thin}; no plan avoids it"
        return "HBM is the bottleneck: strips long enough to hide the weights do not fit into SBUF; more shards help"
    busy = "PSUM, which the scalar and the vector engine use in turn," if bound == "psum" else f"the {bound} engine"
    return f"{busy} is the bottleneck: the rank is too small to hide the passes over the output"


def _times(seconds: dict[str, float]) -> str:
    times = ", ".join(f"{engine} {value * 1e6:.0f} us" for engine, value in seconds.items())
    return f"Modelled busy times ({MODEL_BAND}) {times}"
