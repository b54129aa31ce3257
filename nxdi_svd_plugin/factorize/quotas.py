"""How many pivots each class of columns gives, in whole blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nxdi_svd_plugin.errors import SvdError


def block_quotas(wanted: Sequence[float], sizes: Sequence[int], rank: int, block: int) -> list[int]:
    """Multiples of `block`, at most `sizes`, that sum to `rank` and stay nearest to `wanted` (largest remainders)."""
    if rank % block or sum(size // block for size in sizes) * block < rank:
        raise SvdError(f"rank {rank} in blocks of {block} does not fit into classes of {list(sizes)} columns")
    room = [size // block for size in sizes]
    taken = [min(int(want // block), most) for want, most in zip(wanted, room, strict=True)]
    while sum(taken) * block < rank:
        open_ = [i for i in range(len(taken)) if taken[i] < room[i]]
        taken[max(open_, key=lambda i: (wanted[i] / block - taken[i], room[i] - taken[i]))] += 1
    return [count * block for count in taken]


def moved_quotas(
    quota: Sequence[int], wanted: Sequence[float], sizes: Sequence[int], block: int
) -> Iterator[list[int]]:
    """`quota` with one block taken from a class and given to another that has room, those nearest to `wanted` first."""
    moves = []
    for giver, given in enumerate(quota):
        for taker, (taken, size) in enumerate(zip(quota, sizes, strict=True)):
            if giver != taker and given >= block and taken + block <= size:
                moved = list(quota)
                moved[giver] -= block
                moved[taker] += block
                moves.append(moved)
    return iter(sorted(moves, key=lambda moved: sum(abs(q - want) for q, want in zip(moved, wanted, strict=True))))
