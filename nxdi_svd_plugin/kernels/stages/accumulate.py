"""T = (X·U)ᵀ with the contraction split: Xᵀ and U are streamed in blocks past fp32 sums of T in SBUF.

The products of a block are summed in PSUM, the blocks in SBUF, and T is rounded once, as the last block makes it of
the sums. Both are cut into parts along the rank: the sums of a part die as its T comes to life, so that they are never
there together as a whole. Where the plan says so the last rank tile is summed in PSUM over all blocks, in `banks` of
its own, and needs no room in SBUF.
"""

from typing import Any

from nxdi_svd_plugin.hardware import PARTITIONS, tiles
from nxdi_svd_plugin.kernels.nki import nisa, nl
from nxdi_svd_plugin.kernels.stages.expand import copy_on_scalar
from nxdi_svd_plugin.kernels.tiling.schedule import RankRun, Schedule, Step, Strip

Tensor = Any


def accumulate(
    ts: list[Tensor],
    sums: list[Tensor],
    banks: list[Tensor],
    u: Tensor,
    xt: Tensor,
    rows: Tensor | None,
    row: Any,
    first: Any,
    step: Step,
    runs: tuple[RankRun, ...],
    strip: Strip,
    plan: Schedule,
) -> None:
    """Uᵀ·Xᵀ of the block of input tiles `row`..., whose Xᵀ is xt, into the sums; of the last block, with them into T.

    `rows` is h_t as [128, tiles·S], of which some rank tiles take in tiles themselves, U = [I ; C]: these wait in T for
    the last block, which needs no room of their own. `first` is the strip's first token.
    """
    for run in runs:
        if run.in_psum:
            _last_tile(ts[run.part], banks, u, xt, rows, row, first, step, run, strip, plan)
        else:
            for j in nl.affine_range(run.count):
                _rank_tile(ts[run.part], sums[run.part], u, xt, rows, row, first, step, run, j, strip, plan)


def _rank_tile(
    t: Tensor,
    sums: Tensor,
    u: Tensor,
    xt: Tensor,
    rows: Tensor | None,
    row: Any,
    first: Any,
    step: Step,
    run: RankRun,
    j: Any,
    strip: Strip,
    plan: Schedule,
) -> None:
    """Rank tile run.first + `j`, tile run.place + `j` of its part."""
    loaded = _load_tile(t, u, rows, row, first, step, run, j, strip, plan)
    for n in nl.affine_range(strip.tokens // strip.moving):
        _piece(t, sums, loaded, xt, step, run, j, strip.tokens, n * strip.moving, strip.moving)
    if strip.tokens % strip.moving:
        done = strip.tokens // strip.moving * strip.moving
        _piece(t, sums, loaded, xt, step, run, j, strip.tokens, done, strip.tokens % strip.moving)


def _load_tile(
    t: Tensor,
    u: Tensor,
    rows: Tensor | None,
    row: Any,
    first: Any,
    step: Step,
    run: RankRun,
    j: Any,
    strip: Strip,
    plan: Schedule,
) -> Tensor:
    """The tile's rows of U; in the last block its own tile of the input goes to T."""
    start = (run.first + j) * (tiles(plan.u_rows) * PARTITIONS) + row * run.width
    loaded = nl.load(u[0:PARTITIONS, nl.ds(start, tiles(step.rows) * run.width)])
    if rows is not None and run.own is not None and step.last:
        t[0:PARTITIONS, nl.ds((run.place + j) * strip.tokens, strip.tokens)] = nl.load(
            rows[0:PARTITIONS, nl.ds((run.own + j) * plan.tokens + first, strip.tokens)]
        )
    return loaded


def _last_tile(
    t: Tensor,
    banks: list[Tensor],
    u: Tensor,
    xt: Tensor,
    rows: Tensor | None,
    row: Any,
    first: Any,
    step: Step,
    run: RankRun,
    strip: Strip,
    plan: Schedule,
) -> None:
    """The rank tile whose sums are those of PSUM, a bank for as many tokens as it holds."""
    loaded = _load_tile(t, u, rows, row, first, step, run, 0, strip, plan)
    done = 0
    for bank in banks:
        size, at = bank.shape[1], run.place * strip.tokens + done
        _add_products(bank, loaded, xt, step, run.width, strip.tokens, done, size)
        if step.last and run.own is None:
            t[0 : run.width, nl.ds(at, size)] = nisa.tensor_copy(
                bank[0 : run.width, 0:size], dtype=t.dtype, engine=nisa.vector_engine
            )
        elif step.last:
            t[0 : run.width, nl.ds(at, size)] = nisa.tensor_tensor(
                bank[0 : run.width, 0:size], t[0 : run.width, nl.ds(at, size)], op=nl.add, dtype=t.dtype
            )
        done = done + size


def _add_products(
    total: Tensor, loaded: Tensor, xt: Tensor, step: Step, width: int, tokens: int, start: Any, size: int
) -> None:
    """Uᵀ·Xᵀ of the block into the PSUM tile `total`, for `size` of the strip's `tokens`."""
    for k in nl.affine_range(step.rows // PARTITIONS):
        total[0:width, 0:size] += nisa.nc_matmul(
            loaded[0:PARTITIONS, nl.ds(k * width, width)], xt[0:PARTITIONS, nl.ds(k * tokens + start, size)]
        )
    if step.rows % PARTITIONS:
        last, rest = step.rows // PARTITIONS, step.rows % PARTITIONS
        total[0:width, 0:size] += nisa.nc_matmul(
            loaded[0:rest, nl.ds(last * width, width)], xt[0:rest, nl.ds(last * tokens + start, size)]
        )


def _piece(
    t: Tensor,
    sums: Tensor,
    loaded: Tensor,
    xt: Tensor,
    step: Step,
    run: RankRun,
    j: Any,
    tokens: int,
    start: Any,
    size: int,
) -> None:
    """Tokens start... of the strip, `size` of them: one PSUM bank."""
    width = run.width
    total = nl.zeros((PARTITIONS, size), dtype=nl.float32, buffer=nl.psum)
    _add_products(total, loaded, xt, step, width, tokens, start, size)
    at = (run.place + j) * tokens + start
    if not step.last:
        put(sums, total, at, width, size, step.first)
    elif run.own is None:
        t[0:width, nl.ds(at, size)] = nisa.tensor_tensor(
            total[0:width, 0:size], sums[0:width, nl.ds(at, size)], op=nl.add, dtype=t.dtype
        )
    else:
        put(sums, total, at, width, size, False)
        t[0:width, nl.ds(at, size)] = nisa.tensor_tensor(
            sums[0:width, nl.ds(at, size)], t[0:width, nl.ds(at, size)], op=nl.add, dtype=t.dtype
        )


def put(target: Tensor, total: Tensor, at: Any, count: int, size: int, first: bool) -> None:
    """target[:, at...] = total where it is the `first`, else += total: in SBUF, the product in PSUM."""
    if first:
        target[0:count, nl.ds(at, size)] = copy_on_scalar(total[0:count, 0:size], target.dtype)
    else:
        target[0:count, nl.ds(at, size)] = nisa.tensor_tensor(
            total[0:count, 0:size], target[0:count, nl.ds(at, size)], op=nl.add, dtype=target.dtype
        )
