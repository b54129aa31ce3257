"""The MLP of one layer on one core in bfloat16 as the simulator counts it: fused kernels, unfused matmuls, dense.

Unfused matmuls are blocked for least traffic (kernels/baselines.py) and get X transposed for free; between them X·U,
and gate and up before SwiGLU, go through HBM. Adding an interpolative factor's pivots is not charged to them.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np

from nxdi_svd_plugin.kernels.baselines import matmul
from nxdi_svd_plugin.kernels.fused_down import down
from nxdi_svd_plugin.kernels.fused_up_gate import up_gate
from nxdi_svd_plugin.kernels.tiling.limits import DMA_BYTES_PER_SECOND, PARTITIONS, tiles
from nxdi_svd_plugin.kernels.tiling.pivots import Runs
from nxdi_svd_plugin.simulator import TensorSpec, simulate

DTYPE = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Cost:
    """HBM bytes, tensor-engine cycles (counted) and microseconds (modelled: one call after the other)."""

    hbm_bytes: int = 0
    pe_cycles: int = 0
    modelled_us: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.hbm_bytes + other.hbm_bytes,
            self.pe_cycles + other.pe_cycles,
            self.modelled_us + other.modelled_us,
        )


@dataclass(frozen=True)
class Part:
    """A projection on one core: rank 0 is dense; an interpolative one has `own` pivots, `pivots` in tiles of I."""

    rank: int = 0
    own: int = 0
    pivots: Runs = ()


@dataclass(frozen=True)
class Layer:
    """An MLP on one core: `width` neurons of I, and the projections."""

    hidden: int
    width: int
    gate: Part
    up: Part
    down: Part

    def made(self, part: Part) -> int:
        """Neurons of I that a factor makes or reads beside its pivots."""
        return self.width - part.own


def dense(layer: Layer, tokens: int) -> Cost:
    """Three matmuls and SwiGLU."""
    first = _matmul(tokens, layer.hidden, layer.width)
    return first + first + _swiglu(layer, tokens) + _matmul(tokens, layer.width, layer.hidden)


def unfused(layer: Layer, tokens: int) -> Cost:
    """Two matmuls a factored projection, one a dense one, and SwiGLU."""
    return _unfused_up_gate(layer, tokens) + _unfused_down(layer, tokens)


def fused(layer: Layer, tokens: int, runs_up_gate: bool, runs_down: bool) -> Cost:
    """The kernels where they run, unfused matmuls for the rest of the layer."""
    first = _up_gate(layer, tokens) if runs_up_gate else _unfused_up_gate(layer, tokens)
    return first + (_down(layer, tokens) if runs_down else _unfused_down(layer, tokens))


def _unfused_up_gate(layer: Layer, tokens: int) -> Cost:
    cost = _swiglu(layer, tokens)
    for part in (layer.gate, layer.up):
        if part.rank:
            cost += _matmul(part.rank, layer.hidden, tokens)
            cost += _matmul(tokens, part.rank, layer.made(part))
        else:
            cost += _matmul(tokens, layer.hidden, layer.width)
    return cost


def _unfused_down(layer: Layer, tokens: int) -> Cost:
    rank = layer.down.rank
    if not rank:
        return _matmul(tokens, layer.width, layer.hidden)
    first = _matmul(rank, layer.made(layer.down), tokens)
    return first + _matmul(tokens, rank, layer.hidden)


def _swiglu(layer: Layer, tokens: int) -> Cost:
    """Gate and up read, their product written: bytes and DMA time alone."""
    moved = 3 * tokens * layer.width * DTYPE.itemsize
    return Cost(moved, 0, moved / DMA_BYTES_PER_SECOND * 1e6)


@lru_cache
def _matmul(rows: int, deep: int, columns: int) -> Cost:
    return _count(matmul, (deep, rows), (deep, columns))


@lru_cache
def _up_gate(layer: Layer, tokens: int) -> Cost:
    shapes = [(tokens, layer.hidden)]
    for part in (layer.gate, layer.up):
        shapes += _packed(layer.hidden, part.rank, layer.made(part))
    return _count(up_gate, *shapes, pivots=(layer.gate.pivots, layer.up.pivots))


@lru_cache
def _down(layer: Layer, tokens: int) -> Cost:
    shapes = _packed(layer.made(layer.down), layer.down.rank, layer.hidden)
    return _count(down, (layer.width, tokens), *shapes, pivots=layer.down.pivots)


def _packed(inputs: int, rank: int, outputs: int) -> list[tuple[int, int]]:
    """Shapes of `pack(u, v)`."""
    return [(PARTITIONS, tiles(inputs) * rank), (PARTITIONS, tiles(rank) * outputs)]


def _count(kernel: object, *shapes: tuple[int, int], **options: Any) -> Cost:
    specs = [TensorSpec(shape, DTYPE) for shape in shapes]
    trace = simulate(kernel, *specs, count_only=True, **options)[1]
    return Cost(trace.hbm_bytes, trace.pe_cycles, trace.modelled_latency_us)
