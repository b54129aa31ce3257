"""Chooses the blocks of a chain: little HBM traffic, full stationary tiles, two loads of every operand in flight."""

from dataclasses import replace
from functools import lru_cache

from nxdi_svd_plugin.errors import KernelError
from nxdi_svd_plugin.hardware import PARTITIONS, SBUF_BUDGET
from nxdi_svd_plugin.kernels.tiling.blocks import Blocks, Plan, hbm_bytes, strip_sbuf_bytes, sum_blocks
from nxdi_svd_plugin.kernels.tiling.chain import Chain
from nxdi_svd_plugin.kernels.tiling.engines import engine_seconds
from nxdi_svd_plugin.kernels.tiling.loads import IN_FLIGHT, buffer_choices, has_long_runs, load_bytes
from nxdi_svd_plugin.kernels.tiling.strips import FINE, strip_plans
from nxdi_svd_plugin.kernels.tiling.sums import may_split, sum_plans
from nxdi_svd_plugin.kernels.tiling.through import Through, through

SAVING = 1.01
"""How much slower than the fastest a plan may be that moves less, and how much more one may move that has long runs."""
SLOWER = 1.03
"""How much slower two matmuls may be that move less: what transposing X again costs the tensor engine."""
TIE = 1.003
"""Plans this near the best count as equal."""


@lru_cache(maxsize=4096)
def choose(chain: Chain) -> Plan:
    """The plan for `chain`: strips, or two matmuls where they are faster, or as fast and move less.

    The least modelled time (strips that end inside a stationary tile waste cycles), of equal ones the least HBM bytes,
    of equal ones again the largest streamed loads (long DMA runs, few instructions). Runs of U loads are shorter than
    2 KiB only where longer ones cost 1 %. Every plan leaves room for two loads of each streamed operand.
    Raises KernelError if not even a few tokens fit into SBUF_BUDGET.
    """
    steps = (FINE,) if chain.writes_transposed else (PARTITIONS, 64, 32, FINE)
    plans = [plan for buffers in buffer_choices(chain) for unit in steps for plan in strip_plans(chain, buffers, unit)]
    least = min((sum(hbm_bytes(chain, plan)) for plan in plans), default=None)
    plans += [plan for plan in sum_plans(chain) if least is None or sum(hbm_bytes(chain, plan)) < least]
    if not plans:
        raise KernelError(
            f"{chain.kernel}: inputs {chain.inputs}, rank(s) {chain.ranks} and outputs {chain.outputs} leave no room "
            f"for {min(chain.tokens, FINE)} tokens in {SBUF_BUDGET} bytes per partition; "
            "use a smaller rank or more tensor-parallel shards"
        )
    best = _largest_loads(chain, _long_runs(chain, _fastest(chain, plans)))
    matmuls = through(chain)
    return matmuls if matmuls is not None and _better(chain, matmuls, best) else best


def _better(chain: Chain, matmuls: Through, blocks: Blocks) -> bool:
    mine, theirs = (max(engine_seconds(chain, plan).values()) for plan in (matmuls, blocks))
    if sum(hbm_bytes(chain, matmuls)) < sum(hbm_bytes(chain, blocks)):
        return mine <= SLOWER * theirs
    return mine * SAVING < theirs


Scores = dict[Blocks, int]
"""{plan: HBM bytes}; the least is the best."""


def _fastest(chain: Chain, plans: list[Blocks]) -> Scores:
    """The plans within SAVING of the least modelled time."""
    seconds = {plan: max(engine_seconds(chain, plan).values()) for plan in plans}
    most = SAVING * min(seconds.values())
    return {plan: sum(hbm_bytes(chain, plan)) for plan in plans if seconds[plan] <= most}


def _long_runs(chain: Chain, scores: Scores) -> Scores:
    """The plans that cut no U load into runs below LONG_RUN, or all where these cost more than SAVING of the best."""
    enough = SAVING * min(scores.values())
    long = {plan: score for plan, score in scores.items() if has_long_runs(chain, plan.buffers) and score <= enough}
    return long or scores


def _largest_loads(chain: Chain, scores: Scores) -> Blocks:
    """Of the plans within TIE of the best, which count as equal, the one that streams most bytes at a time."""
    equal = TIE * min(scores.values())
    return max(
        (plan for plan, score in scores.items() if score <= equal), key=lambda plan: load_bytes(chain, plan.buffers)
    )


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
