"""Chooses the blocks of a chain: little HBM traffic, full stationary tiles, two loads of every operand in flight."""

from dataclasses import replace
from functools import lru_cache

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import MOVING, PARTITIONS, SBUF_BUDGET
from nxdi_svd_plugin.kernels.tiling.blocks import Blocks, Plan, hbm_bytes, strip_sbuf_bytes, sum_blocks
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.engines import modelled_seconds
from nxdi_svd_plugin.kernels.tiling.loads import IN_FLIGHT, buffer_choices, has_long_runs, load_bytes
from nxdi_svd_plugin.kernels.tiling.refill import refill_plans
from nxdi_svd_plugin.kernels.tiling.strips import FINE, strip_plans
from nxdi_svd_plugin.kernels.tiling.sums import SMALL_SPLIT, may_split, sum_plans
from nxdi_svd_plugin.kernels.tiling.through import Through, through_plans
from nxdi_svd_plugin.kernels.tiling.unfused import least_seconds, unfused

SAVING = 1.005
"""How much slower than the fastest, or than separate matmuls, a plan may be that moves less."""
LONGER = 1.01
"""How much more a plan may move that has long runs."""
TIE = 1.003
"""Plans this near the best count as equal."""


@lru_cache(maxsize=4096)
def choose(chain: Chain) -> Plan:
    """The plan for `chain`: strips that keep the input or fp32 sums of X·U, or X·U in HBM.

    The least modelled time (engines.py), of plans within SAVING of it the least HBM bytes, of equal ones again the
    largest streamed loads (long DMA runs, few instructions). Runs of U loads are shorter than 2 KiB only where longer
    ones cost 1 %. Every plan leaves room for two loads of each streamed operand.
    Raises KernelError if not even a few tokens fit into SBUF_BUDGET.
    """
    plans = every_plan(chain)
    if not any(_as_good(chain, plan) for plan in plans):
        plans += sum_plans(chain, (SMALL_SPLIT,))
    if not plans:
        raise KernelError(
            f"{chain.kernel}: inputs {chain.inputs}, rank(s) {chain.ranks} and outputs {chain.outputs} leave no room "
            f"for {min(chain.tokens, FINE)} tokens in {SBUF_BUDGET} bytes per partition; "
            "use a smaller rank or more tensor-parallel shards"
        )
    return _largest_loads(chain, _long_runs(chain, _fastest(chain, plans)))


def every_plan(chain: Chain) -> list[Plan]:
    """The plans that are compared: all fit with room for two loads."""
    steps = (MOVING, FINE) if chain.writes_transposed else (MOVING, PARTITIONS, FINE)
    kept = [plan for buffers in buffer_choices(chain) for unit in steps for plan in strip_plans(chain, buffers, unit)]
    return [*kept, *sum_plans(chain), *through_plans(chain), *refill_plans(chain)]


Scores = dict[Plan, int]
"""{plan: HBM bytes}; the least is the best."""


def _fastest(chain: Chain, plans: list[Plan]) -> Scores:
    """Of the plans that `_no_dearer` leaves, those within SAVING of the least modelled time."""
    scores = {plan: sum(hbm_bytes(chain, plan)) for plan in plans}
    seconds = {plan: modelled_seconds(chain, plan) for plan in plans}
    good = _no_dearer(chain, scores, seconds)
    enough = SAVING * min(seconds[plan] for plan in good)
    return {plan: scores[plan] for plan in good if seconds[plan] <= enough}


def _no_dearer(chain: Chain, scores: Scores, seconds: dict[Plan, float]) -> list[Plan]:
    """The plans that move no more than separate matmuls blocked for least traffic, and are slower by SAVING at most.

    Where there is none, those whose larger excess is the least: of bytes over these, of time over the fastest blocks.
    """
    good = [plan for plan in scores if _as_good(chain, plan)]
    if good:
        return good
    bound = unfused(chain)
    excess = {plan: max(scores[plan] / bound.hbm_bytes, seconds[plan] / least_seconds(chain)) for plan in scores}
    least = min(excess.values())
    return [plan for plan in scores if excess[plan] <= least]


def _long_runs(chain: Chain, scores: Scores) -> Scores:
    """The plans that cut no U load into runs below LONG_RUN, or all where these cost more than LONGER of the best."""
    enough = LONGER * min(scores.values())
    long = {plan: score for plan, score in scores.items() if _is_long(chain, plan) and score <= enough}
    return long or scores


def _as_good(chain: Chain, plan: Plan) -> bool:
    bound = unfused(chain)
    return sum(hbm_bytes(chain, plan)) <= bound.hbm_bytes and modelled_seconds(chain, plan) <= SAVING * bound.seconds


def _is_long(chain: Chain, plan: Plan) -> bool:
    return isinstance(plan, Through) or bool(plan.firsts) or has_long_runs(chain, plan.buffers)


def _largest_loads(chain: Chain, scores: Scores) -> Plan:
    """Of the plans within TIE of the best, which count as equal, the one that streams most bytes at a time.

    X·U goes through HBM only where no other plan is among them.
    """
    equal = TIE * min(scores.values())
    return max((plan for plan, score in scores.items() if score <= equal), key=lambda plan: _streamed(chain, plan))


def _streamed(chain: Chain, plan: Plan) -> int:
    return 0 if isinstance(plan, Through) or plan.firsts else load_bytes(chain, plan.buffers)


def forced(chain: Chain, strip: tuple[int, ...], split: int = 0) -> Blocks:
    """Blocks with the sub-strips `strip` that the caller asks for, whether or not they fit SBUF.

    `split`: input tiles of one block of a split contraction, 0 for all of Xᵀ.
    """
    if not strip or min(strip) < 1:
        raise KernelError(f"strip {strip} must be a tuple of positive token counts, one for each sub-strip")
    if split and not (may_split(chain) and len(strip) == 1 and sum_blocks(chain, split) > 1):
        raise KernelError(f"{chain.kernel}: a contraction split by {split} tiles needs one sub-strip and two blocks")
    choices = [b for b in buffer_choices(chain) if b.u_tiles == 1 and (b.v_tiles == 1 or not chain.writes_transposed)]
    fitting = [b for b in choices if strip_sbuf_bytes(chain, b, strip, IN_FLIGHT) <= SBUF_BUDGET]
    buffers = max(fitting or choices, key=lambda b: (1 if fitting else -1) * load_bytes(chain, b))
    buffers = replace(buffers, u_rows=split, x_tiles=split, split=split) if split else buffers
    count, left = divmod(chain.tokens, sum(strip))
    groups = [(count, strip)] if count else []
    if left:
        groups.append((1, _cut(strip, left)))
    return Blocks(tuple(groups), buffers)


def _cut(strip: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """The leading part of `strip` that holds `tokens`."""
    sizes = []
    for size in strip:
        sizes.append(min(size, tokens))
        tokens -= sizes[-1]
    return tuple(size for size in sizes if size)
