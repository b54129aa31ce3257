"""The latency model: each of its rules in a kernel of its own, computed by hand."""

from functools import partial

import numpy as np
import pytest

from nxdi_svd_plugin.hardware import (
    CLOCK_HZ,
    DMA_BYTES_PER_SECOND,
    DMA_SHORT_RUN,
    DMA_TRANSFER_SECONDS,
    MODEL_BAND,
    MODEL_ERROR,
    OVERLAP,
    STALL_CYCLES,
)
from nxdi_svd_plugin.simulator import TensorSpec, simulate
from nxdi_svd_plugin.simulator.front import isa as nisa
from nxdi_svd_plugin.simulator.front import language as nl
from nxdi_svd_plugin.simulator.front.nki_api import nki


def count(kernel, *shapes, dtype=nl.bfloat16, **options):
    return simulate(nki.jit(kernel), *[TensorSpec(s, dtype) for s in shapes], count_only=True, **options)[1]


def columns(x, width, transposed=False):
    """128 x 1024 elements, in loads of `width` columns."""
    out = nl.ndarray((128, 1024), nl.bfloat16, buffer=nl.shared_hbm)
    row = nl.ndarray((128, 1024), nl.bfloat16)
    for i in nl.affine_range(1024 // width):
        at = nl.ds(i * width, width)
        row[:, at] = nl.load_transpose2d(x[at, :]) if transposed else nl.load(x[:, at])
    nl.store(out, row)
    return out


def dma_seconds(descriptors, length, transfers):
    """By hand: the loads' descriptors, and the store of 128 rows of 2 KiB."""
    bytes_ = descriptors * max(length, DMA_SHORT_RUN) + 128 * 2048
    return bytes_ / DMA_BYTES_PER_SECOND + transfers * DMA_TRANSFER_SECONDS


@pytest.mark.parametrize("width", [1024, 512, 128, 64, 8])
def test_a_short_descriptor_costs_as_much_as_one_of_256_bytes_and_every_transfer_its_start(width):
    number = 1024 // width
    trace = count(partial(columns, width=width), (128, 1024))
    assert trace.modelled_seconds["dma"] == pytest.approx(dma_seconds(128 * number, 2 * width, number + 1))


def test_a_transpose_by_dma_costs_a_descriptor_per_element():
    trace = count(partial(columns, width=512, transposed=True), (1024, 128))
    assert trace.modelled_seconds["dma"] == pytest.approx(dma_seconds(128 * 1024, 2, 3))


def test_bytes_that_belong_to_no_transfer_of_the_program_count_at_the_plain_rate():
    def spills(x):
        out = nl.ndarray((128, 512), nl.bfloat16, buffer=nl.shared_hbm)
        big = nl.ndarray((128, 200, 512), nl.bfloat16)
        for i in nl.affine_range(200):
            big[:, i, :] = nl.exp(nl.load(x))
        for i in nl.sequential_range(200):
            nl.store(out, big[:, i, :])
        return out

    trace = count(spills, (128, 512), strict=False)
    assert trace.spill_save_bytes > 0
    expected = trace.hbm_bytes / DMA_BYTES_PER_SECOND + trace.dma_count * DMA_TRANSFER_SECONDS
    assert trace.modelled_seconds["dma"] == pytest.approx(expected)


def engines(body, dtype=nl.float32):
    def kernel(x):
        out = nl.ndarray((128, 512), dtype, buffer=nl.shared_hbm)
        tile = nl.load(x)
        acc = nl.zeros((128, 512), nl.float32, buffer=nl.psum)
        acc += nisa.nc_matmul(tile[:, 0:128], tile)
        nl.store(out, body(acc, tile))
        return out

    return count(kernel, (128, 512), dtype=dtype)


def us(engine, cycles, issues=1):
    return (cycles + STALL_CYCLES * issues) / CLOCK_HZ[engine]


@pytest.mark.parametrize(("dtype", "passes"), [(nl.float32, 4), (nl.bfloat16, 1)])
def test_every_instruction_and_every_pass_of_a_matmul_has_its_stall(dtype, passes):
    busy = engines(lambda acc, tile: nisa.activation(nl.copy, acc, dtype=dtype), dtype).modelled_seconds
    assert busy["pe"] == pytest.approx(us("pe", 512 * passes, passes))
    assert busy["scalar"] == pytest.approx(us("scalar", 512))
    assert busy["vector"] == busy["gpsimd"] == 0


def test_scalar_and_vector_engine_take_turns_at_psum():
    def both(acc, tile):
        return nisa.tensor_tensor(nisa.activation(nl.silu, acc), acc, np.multiply)

    def one(acc, tile):
        return nisa.tensor_tensor(nisa.activation(nl.silu, acc), tile, np.multiply)

    scalar = us("scalar", 512)
    assert engines(both).modelled_seconds["psum"] == pytest.approx(scalar + us("vector", 512))
    assert engines(one).modelled_seconds["psum"] == pytest.approx(scalar)
    assert engines(one).modelled_seconds["vector"] == pytest.approx(us("vector", 1024))


def integers():
    i_p, i_f = nl.mgrid[0:128, 0:512]
    return nisa.iota(i_p + i_f, dtype=nl.int32)


@pytest.mark.parametrize(
    ("body", "engine"),
    [
        (lambda acc, tile: nl.copy(acc), "scalar"),
        (lambda acc, tile: nisa.tensor_copy(acc), "vector"),
        (lambda acc, tile: nl.multiply(acc, 2.0), "scalar"),
        (lambda acc, tile: nl.multiply(acc, tile[:, 0:1]), "scalar"),
        (lambda acc, tile: nl.maximum(acc, 2.0), "vector"),
        (lambda acc, tile: nl.add(acc, tile), "vector"),
        (lambda acc, tile: nisa.tensor_scalar(tile, np.multiply, 2.0), "scalar"),
        (lambda acc, tile: nisa.tensor_scalar(tile, np.multiply, 2.0, engine=nisa.vector_engine), "vector"),
        (lambda acc, tile: nisa.tensor_scalar(tile, np.multiply, 2.0, op1=np.maximum, operand1=0.0), "vector"),
        (lambda acc, tile: nl.copy(integers(), dtype=nl.float32), "vector"),
    ],
)
def test_engine_of_what_the_kernel_leaves_to_the_compiler(body, engine):
    trace = engines(body)
    cycles = {"scalar": trace.scalar_cycles, "vector": trace.vector_cycles}
    assert cycles.pop(engine) == 512
    assert list(cycles.values()) == [0]


def test_the_latency_is_the_busiest_engine_and_what_does_not_overlap():
    trace = count(partial(columns, width=512), (128, 1024), dma_bytes_per_second=1e9)
    busy = trace.modelled_seconds
    assert trace.modelled_bottleneck == "dma"
    assert trace.modelled_latency_us == pytest.approx(1e6 * OVERLAP * busy["dma"])
    assert busy["dma"] > 2 * 128 * 2048 / 1e9
    assert "model" in type(trace).modelled_latency_us.__doc__.lower()


def test_the_band_says_how_far_off_a_modelled_time_may_be():
    low, high = MODEL_ERROR
    assert -1 < low < 0 < high
    assert MODEL_BAND == f"measured {low:+.0%} to {high:+.0%}"
