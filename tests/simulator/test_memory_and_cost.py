"""Hand-computed memory peaks, spills, engine cycles and DMA runs."""

from functools import partial

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


def keeps_too_much(x, computed):
    """A 192 KiB strip, written once and read in two loops."""
    out = nl.ndarray((128, 512), nl.bfloat16, buffer=nl.shared_hbm)
    big = nl.ndarray((128, 192, 512), nl.bfloat16)
    for i in nl.affine_range(192):
        raw = nl.load(x[:, nl.ds(i * 512, 512)])
        big[:, i, :] = nl.exp(raw) if computed else raw
    for i in nl.sequential_range(192):
        nl.store(out, nl.add(big[:, i, :], big[:, i, :]))
    for i in nl.sequential_range(192):
        nl.store(out, nl.add(big[:, i, :], 1.0))
    return out


STRIP = 128 * 192 * 512 * 2


def test_lenient_spill_is_the_excess_once_saved_and_reloaded_per_read():
    trace = count(partial(keeps_too_much, computed=True), (128, 192 * 512), strict=False)
    excess = trace.sbuf_peak_bytes - 176 * 1024
    assert trace.sbuf_peak_bytes == 192 * 1024 + 2 * 1024  # the strip, and raw and exp or the sum
    save, reload = 128 * excess, 2 * 128 * excess
    assert (trace.spill_save_bytes, trace.spill_reload_bytes) == (save, reload)
    assert trace.hbm_read_bytes == STRIP + reload
    assert trace.hbm_write_bytes == 2 * STRIP + save


def test_what_was_loaded_is_loaded_again_whole_by_its_readers_and_not_spilled():
    trace = count(partial(keeps_too_much, computed=False), (128, 192 * 512), strict=False)
    assert trace.spill_save_bytes == trace.spill_reload_bytes == 0
    assert trace.hbm_read_bytes == 2 * STRIP  # once for each of the two loops, instead of once
    assert trace.hbm_write_bytes == 2 * STRIP


# ---- what a compiler does about block dimensions and invariant loads
def two_digits(x):
    """A block dimension of 8 indexed by 4 * i + j: the loop i keeps four of them, the loop j one."""
    out = nl.ndarray((8, 128, 512), nl.bfloat16, buffer=nl.shared_hbm)
    tiles = nl.ndarray((8, nl.par_dim(128), 512), nl.bfloat16)
    for i in nl.affine_range(2):
        for j in nl.affine_range(4):
            tiles[4 * i + j] = nl.load(x[4 * i + j])
        for j in nl.affine_range(4):
            nl.store(out[4 * i + j], tiles[4 * i + 3 - j])
    return out


def two_nests(x):
    """The second nest reads what the first wrote: every tile is alive in between."""
    out = nl.ndarray((8, 128, 512), nl.bfloat16, buffer=nl.shared_hbm)
    tiles = nl.ndarray((8, nl.par_dim(128), 512), nl.bfloat16)
    for i in nl.affine_range(8):
        tiles[i] = nl.load(x[i])
    for i in nl.affine_range(8):
        nl.store(out[i], tiles[i])
    return out


def neighbours(x):
    """Every iteration reads what the one before it wrote: nothing is contracted."""
    out = nl.ndarray((8, 128, 512), nl.bfloat16, buffer=nl.shared_hbm)
    tiles = nl.ndarray((9, nl.par_dim(128), 512), nl.bfloat16)
    for i in nl.sequential_range(8):
        tiles[i + 1] = nl.load(x[i])
        nl.store(out[i], tiles[i])
    return out


def in_turn(x):
    """Two buffers by `% 2`, which says nothing about who is alive: both stay."""
    out = nl.ndarray((8, 128, 512), nl.bfloat16, buffer=nl.shared_hbm)
    tiles = nl.ndarray((2, nl.par_dim(128), 512), nl.bfloat16)
    for i in nl.sequential_range(8):
        tiles[i % 2] = nl.load(x[i])
        nl.store(out[i], tiles[i % 2])
    return out


def one_by_one(x):
    """Written and read in the same iteration, of 192 KiB of SBUF and 192 banks of PSUM by declaration."""
    out = nl.ndarray((192, 128, 512), nl.bfloat16, buffer=nl.shared_hbm)
    tiles = nl.ndarray((12, 16, nl.par_dim(128), 512), nl.bfloat16)
    acc = nl.zeros((12, 16, nl.par_dim(128), 512), nl.float32, buffer=nl.psum, lazy_initialization=True)
    for i in nl.affine_range(12):
        for j in nl.affine_range(16):
            tiles[i, j] = nl.load(x[16 * i + j])
            acc[i, j] = nl.copy(tiles[i, j])
            nl.store(out[16 * i + j], nl.copy(acc[i, j], dtype=nl.bfloat16))
    return out


TILE = 512 * 2


@pytest.mark.parametrize(
    ("kernel", "tiles", "sbuf"),
    [
        (one_by_one, 192, TILE),
        (two_digits, 8, 4 * TILE),
        (two_nests, 8, 8 * TILE),
        (neighbours, 8, 9 * TILE),
        (in_turn, 8, 2 * TILE),
    ],
)
def test_block_dimensions_are_contracted_to_what_is_alive_at_once(kernel, tiles, sbuf):
    trace = count(kernel, (tiles, 128, 512))
    assert trace.sbuf_peak_bytes == sbuf
    assert trace.psum_peak_banks == (kernel is one_by_one)
    assert trace.hbm_bytes == 2 * tiles * 128 * TILE


def invariant(x, w):
    """w does not depend on i: 4 x 2 tiles of 1 KiB, loaded in all of 8 iterations."""
    out = nl.ndarray((8, 128, 512), nl.bfloat16, buffer=nl.shared_hbm)
    for i in nl.affine_range(8):
        tile = nl.load(x[i])
        for j in nl.affine_range(w.shape[0]):
            for k in nl.affine_range(2):
                tile += nl.load(w[j, :, nl.ds(k * 512, 512)])
        nl.store(out[i], tile)
    return out


def test_invariant_loads_are_counted_as_written_unless_hoisting_is_asked_for():
    x, w = (8, 128, 512), (4, 128, 1024)
    size = {name: 2 * np.prod(shape) for name, shape in (("x", x), ("w", w))}
    written, hoisted = (count(invariant, x, w, strict=False, hoist=hoist) for hoist in (False, True))
    assert written.hbm_read_bytes == size["x"] + 8 * size["w"]
    assert hoisted.hbm_read_bytes == size["x"] + size["w"]
    assert hoisted.sbuf_peak_bytes - written.sbuf_peak_bytes == 8 * TILE - TILE
    assert written.dma_count - hoisted.dma_count == 7 * 8
    assert hoisted.vector_cycles == written.vector_cycles


def test_a_load_is_not_hoisted_if_what_it_brings_exceeds_sbuf():
    x, w = (8, 128, 512), (89, 128, 1024)  # 178 KiB of w
    trace = count(invariant, x, w, strict=False, hoist=True)
    assert trace.hbm_read_bytes == 2 * (np.prod(x) + 8 * np.prod(w))


def test_of_a_hoisted_load_that_does_not_fit_beside_the_rest_the_excess_tiles_stay_in_the_loop():
    x, w = (8, 128, 512), (88, 128, 1024)  # 176 KiB of w, beside x and the sum
    trace = count(invariant, x, w, strict=False, hoist=True)
    over = trace.sbuf_peak_bytes - 176 * 1024
    assert 0 < over <= 3 * TILE
    tiles = -(-over // TILE)
    assert trace.hbm_read_bytes == 2 * (np.prod(x) + np.prod(w)) + 7 * tiles * 128 * TILE


def many_readers(x, inner):
    """A 200 KiB strip that is computed, read 3 x inner times: tile j does not depend on the innermost loop."""
    out = nl.ndarray((128, 512), nl.bfloat16, buffer=nl.shared_hbm)
    big = nl.ndarray((128, 200, 512), nl.bfloat16)
    for i in nl.affine_range(200):
        big[:, i, :] = nl.exp(nl.load(x))
    for _ in nl.sequential_range(3):
        for j in nl.sequential_range(200):
            for _ in nl.sequential_range(inner):
                nl.store(out, nl.add(big[:, j, :], 1.0))
    return out


@pytest.mark.parametrize("inner", [1, 5])
def test_a_reload_that_an_inner_loop_does_not_change_is_done_once_for_it(inner):
    trace = count(partial(many_readers, inner=inner), (128, 512), strict=False)
    excess = trace.sbuf_peak_bytes - 176 * 1024
    assert trace.spill_save_bytes == 128 * excess
    assert trace.spill_reload_bytes == 3 * 128 * excess


def read_beside_the_write(x):
    """The sum reads the tile in the loop body that wrote it: only the second loop reloads."""
    out = nl.ndarray((128, 512), nl.bfloat16, buffer=nl.shared_hbm)
    big = nl.ndarray((128, 200, 512), nl.bfloat16)
    for i in nl.affine_range(200):
        big[:, i, :] = nl.exp(nl.load(x))
        nl.add(big[:, i, :], 1.0)
    for i in nl.sequential_range(200):
        nl.store(out, nl.add(big[:, i, :], 1.0))
    return out


def test_a_read_beside_the_write_is_not_reloaded():
    trace = count(read_beside_the_write, (128, 512), strict=False)
    excess = trace.sbuf_peak_bytes - 176 * 1024
    assert trace.spill_save_bytes == trace.spill_reload_bytes == 128 * excess > 0


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
        (lambda x: nisa.tensor_scalar(x, np.maximum, 2.0, op1=np.add, operand1=1.0), nl.float32, (0, 0, 512, 0)),
        (lambda x: nisa.reciprocal(x), nl.float32, (0, 0, 1024, 0)),
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
