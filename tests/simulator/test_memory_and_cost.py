"""Hand-computed memory peaks, spills, engine cycles and DMA runs."""

import numpy as np
import pytest

from nxdi_svd_plugin.simulator import TensorSpec, simulate
from nxdi_svd_plugin.simulator.front import isa as nisa
from nxdi_svd_plugin.simulator.front import language as nl
from nxdi_svd_plugin.simulator.front.nki_api import nki


def count(kernel, *shapes, dtype=nl.bfloat16, **options):
    return simulate(nki.jit(kernel), *[TensorSpec(s, dtype) for s in shapes], count_only=True, **options)[1]


# ---- liveness
def two_phases(x):
    """Phase 1 fills a strip from loaded tiles, phase 2 reads it: strip + the larger phase."""
    out = nl.ndarray((128, 4096), nl.bfloat16, buffer=nl.shared_hbm)
    strip = nl.ndarray((128, 8, 512), nl.bfloat16)
    for i in nl.affine_range(8):
        raw = nl.load(x[:, nl.ds(i * 512, 512)])
        strip[:, i, :] = nl.exp(raw)
    for j in nl.affine_range(4):
        wide = nl.ndarray((128, 1024), nl.bfloat16)
        for h in nl.affine_range(2):
            wide[:, nl.ds(h * 512, 512)] = nl.copy(strip[:, j * 2 + h, :])
        nl.store(out[:, nl.ds(j * 1024, 1024)], wide)
    return out


def test_strip_lives_through_both_phases_and_loop_tiles_in_their_own():
    trace = count(two_phases, (128, 4096))
    assert trace.sbuf_peak_bytes == 8 * 512 * 2 + max(512, 1024) * 2
    assert trace.sbuf_prefetch_peak_bytes == 8 * 512 * 2 + max(2 * 512, 1024) * 2


def reused_in_turn(x):
    """Three tiles of which only two are ever alive together."""
    out = nl.ndarray((128, 512), nl.bfloat16, buffer=nl.shared_hbm)
    a = nl.load(x)
    b = nl.exp(a)
    c = nl.exp(b)
    nl.store(out, c)
    return out


def test_a_tile_dies_with_its_last_read():
    assert count(reused_in_turn, (128, 512)).sbuf_peak_bytes == 2 * 512 * 2


def used_inside_a_loop(x):
    """`a` is made before the loop and read inside: alive for the whole loop, together with the loop's own tiles."""
    out = nl.ndarray((128, 2048), nl.bfloat16, buffer=nl.shared_hbm)
    a = nl.load(x)
    for i in nl.affine_range(4):
        b = nl.exp(a)
        c = nl.exp(b)
        nl.store(out[:, nl.ds(i * 512, 512)], c)
    return out


def test_an_outer_tile_read_in_a_loop_lives_for_the_whole_loop():
    assert count(used_inside_a_loop, (128, 512)).sbuf_peak_bytes == 3 * 512 * 2


def test_psum_banks_are_whole():
    def kernel(x):
        out = nl.ndarray((128, 64), nl.bfloat16, buffer=nl.shared_hbm)
        tile = nl.load(x)
        first = nl.ndarray((128, 64), nl.float32, buffer=nl.psum)
        second = nl.ndarray((128, 3, 256), nl.float32, buffer=nl.psum)
        first[...] = nisa.nc_matmul(tile[:, 0:128], tile[:, 0:64])
        second[:, 0, :] = nisa.nc_matmul(tile[:, 0:128], tile)
        nl.store(out, nl.add(nl.copy(first), second[:, 0, 0:64]))
        return out

    assert count(kernel, (128, 256)).psum_peak_banks == 1 + 2


@pytest.mark.parametrize(("blocks", "width", "expected"), [(4, 384, 4), (4, 256, 2), (3, 512, 3), (5, 128, 2)])
def test_a_block_of_a_psum_tensor_straddles_no_bank(blocks, width, expected):
    @nki.jit
    def kernel(x):
        out = nl.ndarray((128, width), nl.float32, buffer=nl.shared_hbm)
        acc = nl.ndarray((blocks, nl.par_dim(128), width), nl.float32, buffer=nl.psum)
        for i in nl.affine_range(blocks):
            acc[i] = nl.load(x)
        for i in nl.sequential_range(blocks):
            nl.store(out, acc[i])
        return out

    assert count(kernel, (128, width)).psum_peak_banks == expected


def keeps_too_much(x):
    """A 192 KiB strip, written once and read twice."""
    out = nl.ndarray((128, 512), nl.bfloat16, buffer=nl.shared_hbm)
    big = nl.ndarray((128, 192, 512), nl.bfloat16)
    for i in nl.affine_range(192):
        big[:, i, :] = nl.load(x[:, nl.ds(i * 512, 512)])
    for i in nl.sequential_range(192):
        nl.store(out, nl.add(big[:, i, :], big[:, i, :]))
    return out


def test_lenient_spill_is_the_excess_once_saved_and_reloaded_per_read():
    lenient = count(keeps_too_much, (128, 192 * 512), strict=False)
    excess = lenient.sbuf_peak_bytes - 176 * 1024
    assert lenient.sbuf_peak_bytes == 192 * 1024 + 1024  # the strip and the sum
    save, reload = 128 * excess, 2 * 128 * excess
    assert (lenient.spill_save_bytes, lenient.spill_reload_bytes) == (save, reload)
    size = 128 * 192 * 512 * 2
    assert lenient.hbm_read_bytes == size + reload
    assert lenient.hbm_write_bytes == size + save


# ---- cycles
def cycles(body, dtype=nl.bfloat16, shape=(128, 512)):
    def kernel(x):
        out = nl.ndarray(shape, dtype, buffer=nl.shared_hbm)
        nl.store(out, body(nl.load(x)))
        return out

    trace = count(kernel, shape, dtype=dtype)
    return trace.pe_cycles, trace.scalar_cycles, trace.vector_cycles, trace.gpsimd_cycles


def psum_of(x):
    tile = nl.ndarray((128, 512), nl.float32, buffer=nl.psum)
    tile[...] = nisa.activation(nl.copy, x)
    return tile


@pytest.mark.parametrize(
    ("body", "dtype", "expected"),
    [
        (lambda x: nisa.activation(nl.silu, x), nl.bfloat16, (0, 512, 0, 0)),
        (lambda x: nisa.tensor_copy(x), nl.bfloat16, (0, 0, 512, 0)),
        (lambda x: nisa.tensor_copy(x, engine=nisa.gpsimd_engine), nl.bfloat16, (0, 0, 0, 512)),
        (lambda x: nisa.tensor_tensor(x, x, np.multiply), nl.bfloat16, (0, 0, 512, 0)),
        (lambda x: nisa.tensor_tensor(x, x, np.multiply), nl.float32, (0, 0, 1024, 0)),
        (lambda x: nisa.tensor_tensor(x, x, np.maximum), nl.bfloat16, (0, 0, 1024, 0)),
        (lambda x: nisa.tensor_tensor(x, psum_of(x), np.multiply), nl.float32, (0, 512, 512, 0)),
        (lambda x: nisa.tensor_scalar(x, np.multiply, 2.0, op1=np.add, operand1=1.0), nl.float32, (0, 0, 512, 0)),
        (lambda x: nisa.reciprocal(x), nl.float32, (0, 0, 4096, 0)),
        (lambda x: nisa.memset((128, 512), 0, nl.bfloat16), nl.bfloat16, (0, 0, 256, 0)),
        (lambda x: nisa.memset((128, 512), 0, nl.float32), nl.float32, (0, 0, 512, 0)),
        (
            lambda x: nisa.scalar_tensor_tensor(data=x, op0=np.add, operand0=1.0, op1=np.multiply, operand1=x),
            nl.float32,
            (0, 0, 1024, 0),
        ),
    ],
)
def test_cycles_per_instruction_follow_the_documented_formulas(body, dtype, expected):
    assert cycles(body, dtype) == expected


def test_small_instructions_cost_the_minimum():
    assert cycles(lambda x: nisa.activation(nl.exp, x), shape=(128, 8)) == (0, 64, 0, 0)


@pytest.mark.parametrize(
    ("m", "n", "dtype", "onezero", "expected"),
    [
        (128, 512, nl.bfloat16, False, 512),
        (128, 1, nl.bfloat16, False, 64),
        (16, 1, nl.bfloat16, False, 16),
        (16, 40, nl.bfloat16, False, 40),
        (128, 512, nl.float32, False, 2048),
        (128, 128, nl.float32, True, 256),
    ],
)
def test_matmul_cycles(m, n, dtype, onezero, expected):
    def kernel(x):
        out = nl.ndarray((m, n), dtype, buffer=nl.shared_hbm)
        tile = nl.load(x)
        nl.store(out, nisa.nc_matmul(tile[:, 0:m], tile[:, 0:n], is_moving_onezero=onezero))
        return out

    trace = count(kernel, (128, 512), dtype=dtype)
    assert trace.pe_cycles == expected
    assert trace.matmul_flops == 2 * 128 * m * n


# ---- DMA
def test_dma_runs_by_access_pattern():
    def kernel(x, packed):
        out = nl.ndarray((128, 64), nl.bfloat16, buffer=nl.shared_hbm)
        nl.load(x[0:128, 0:64])  # 64 of 512 columns: 128-byte runs
        nl.load(x[0:128, 0:512])  # whole rows, one run per partition
        nl.load(packed[0])  # [128, 4, 64], contiguous per partition
        nl.load_transpose2d(x[0:128, 0:64])  # element by element
        nl.store(out, nl.load(x[0:128, 0:64]))
        return out

    trace = count(kernel, (128, 512), (2, 128, 4, 64))
    assert trace.dma_runs == {2: 128 * 64, 128: 3 * 128, 512: 128, 1024: 128}
    assert trace.dma_count == 6
    assert trace.hbm_write_bytes == 128 * 64 * 2
    assert trace.hbm_read_bytes == sum(n * 2 for n in (3 * 128 * 64, 128 * 512, 128 * 256))


def test_casting_loads_move_the_source_type():
    def kernel(x):
        out = nl.ndarray((128, 64), nl.float32, buffer=nl.shared_hbm)
        nl.store(out, nl.load(x, dtype=nl.float32))
        return out

    trace = count(kernel, (128, 64))
    assert (trace.hbm_read_bytes, trace.hbm_write_bytes) == (128 * 64 * 2, 128 * 64 * 4)


def test_the_latency_is_a_model_of_the_busiest_engine():
    trace = count(two_phases, (128, 4096), dma_bytes_per_second=1e9)
    assert trace.modelled_bottleneck == "dma"
    assert trace.modelled_latency_us == pytest.approx(2 * 128 * 4096 * 2 / 1e9 * 1e6)
    assert "model" in type(trace).modelled_latency_us.__doc__.lower()
