"""Every limit and rule, by a kernel that breaks exactly it; each message names the limit and this file's line."""

import numpy as np
import pytest

from nxdi_svd_plugin.errors import SimulatorError
from nxdi_svd_plugin.simulator import TensorSpec, simulate
from nxdi_svd_plugin.simulator.front import isa as nisa
from nxdi_svd_plugin.simulator.front import language as nl
from nxdi_svd_plugin.simulator.front.nki_api import nki

X = np.ones((128, 512), np.float32)


def sbuf(shape=(128, 512), dtype=nl.float32, value=1.0):
    return nl.full(shape, value, dtype, buffer=nl.sbuf)


def in_psum(x):
    tile = nl.zeros((128, 512), nl.float32, buffer=nl.psum)
    tile[...] = nl.load(x)
    return tile


def partition_too_large(x):
    nl.ndarray((129, 4), nl.float32, buffer=nl.sbuf)


def partition_too_large_load(x):
    nl.load(x.reshape((256, 256)))


def one_dimensional(x):
    nl.ndarray((128,), nl.float32, buffer=nl.sbuf)


def matmul_k_differs(x):
    nisa.nc_matmul(sbuf((64, 128)), sbuf((128, 512)))


def stationary_too_wide(x):
    nisa.nc_matmul(sbuf((128, 129)), sbuf())


def moving_too_wide(x):
    nisa.nc_matmul(sbuf((128, 128)), sbuf((128, 513)))


def matmul_from_psum(x):
    nisa.nc_matmul(sbuf((128, 128)), in_psum(x))


def matmul_from_hbm(x):
    nisa.nc_matmul(sbuf((128, 128)), x)


def matmul_integers(x):
    nisa.nc_matmul(sbuf((128, 128), nl.int32), sbuf((128, 128), nl.int32))


def matmul_mixed_fp32(x):
    nisa.nc_matmul(sbuf((128, 128), nl.bfloat16), sbuf((128, 128)))


def matmul_result_not_fp32(x):
    acc = nl.zeros((128, 512), nl.bfloat16, buffer=nl.psum)
    acc += nisa.nc_matmul(sbuf((128, 128)), sbuf())


def matmul_straddles_banks(x):
    acc = nl.ndarray((128, 1024), nl.float32, buffer=nl.psum)
    acc[:, 256:768] = nisa.nc_matmul(sbuf((128, 128)), sbuf())


def transpose_too_large(x):
    nisa.nc_transpose(sbuf((128, 256)))


def vector_transpose_too_large(x):
    nisa.nc_transpose(sbuf((64, 32)), engine=nisa.vector_engine)


def transpose_result_not_fp32(x):
    nisa.nc_transpose(sbuf((128, 128), nl.bfloat16), dtype=nl.bfloat16)


def transpose_on_the_scalar_engine(x):
    nisa.nc_transpose(sbuf((32, 32)), engine=nisa.scalar_engine)


def transpose_of_psum_on_the_tensor_engine(x):
    nisa.nc_transpose(in_psum(x)[0:32, 0:32], engine=nisa.tensor_engine)


def two_psum_operands(x):
    nisa.tensor_tensor(in_psum(x), in_psum(x), np.add)


def gpsimd_scalar_operation_on_psum(x):
    nisa.tensor_scalar(in_psum(x), np.add, 1.0, engine=nisa.gpsimd_engine)


def gpsimd_writes_psum(x):
    tile = nl.ndarray((128, 512), nl.float32, buffer=nl.psum)
    tile[...] = nisa.tensor_copy(nl.load(x), engine=nisa.gpsimd_engine)


def where_two_psum_operands(x):
    nl.where(in_psum(x), in_psum(x), 0.0)


def matmul_straddles_banks_in_a_loop(x):
    acc = nl.ndarray((128, 1536), nl.float32, buffer=nl.psum)
    for i in nl.affine_range(4):
        acc[:, nl.ds(i * 384, 384)] = nisa.nc_matmul(sbuf((128, 128)), sbuf((128, 384)))


def matmul_result_spread_over_banks(x):
    acc = nl.ndarray((128, 512, 2), nl.float32, buffer=nl.psum)
    acc[:, :, 0] = nisa.nc_matmul(sbuf((128, 128)), sbuf())


def five_free_axes(x):
    tile = sbuf((128, 4, 4, 4, 4, 4))
    nl.copy(tile[:, 0:2, 0:2, 0:2, 0:2, 0:2])


def far_step(x):
    tile = sbuf((128, 2, 2**15))
    nl.copy(tile[:, 0:2, 0:1])


def neither_zero_nor_one(x):
    out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
    nl.store(out, nisa.nc_matmul(sbuf((128, 128)), sbuf(value=0.5), is_moving_onezero=True))
    return out


def new_output():
    return nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)


def output_in_helper(x):
    return new_output()


def plain_range(x):
    out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
    for i in range(4):
        nl.store(out[:, nl.ds(i * 128, 128)], nl.load(x[:, nl.ds(i * 128, 128)]))
    return out


def gpsimd_reads_psum(x):
    nisa.tensor_copy(in_psum(x), engine=nisa.gpsimd_engine)


def scalar_engine_tensor_copy(x):
    nisa.tensor_copy(sbuf(), engine=nisa.scalar_engine)


def load_from_sbuf(x):
    nl.load(sbuf())


def compute_on_hbm(x):
    nl.exp(x)


def partitions_differ(x):
    nisa.tensor_tensor(sbuf((64, 8)), sbuf((128, 8)), np.add)


def operator_broadcasts_partitions(x):
    sbuf((1, 8)) + sbuf((128, 8))


def partition_start(x):
    nl.exp(sbuf((128, 8))[16:48, :])


def too_many_elements(x):
    nl.exp(nl.zeros((128, 8192), nl.bfloat16, buffer=nl.psum))


def bias_not_a_tile(x):
    nisa.activation(nl.exp, sbuf(), bias=1.0)


def bias_integer(x):
    nisa.activation(nl.exp, sbuf(), bias=sbuf((128, 1), nl.int32))


def reciprocal_with_bias(x):
    nisa.activation(nl.reciprocal, sbuf(), bias=sbuf((128, 1)))


def scale_fp16(x):
    nisa.activation(nl.exp, sbuf(), scale=sbuf((128, 1), np.float16))


def unknown_activation(x):
    nisa.activation(np.linalg.norm, sbuf())


def reduce_partitions(x):
    nl.sum(sbuf(), axis=0)


def out_of_bounds(x):
    nl.load(x[0:128, 0:513])


def out_of_bounds_in_loop(x):
    for i in nl.affine_range(5):
        nl.load(x[:, nl.ds(i * 128, 128)])


def mask_too_generous(x):
    out = nl.ndarray((128, 640), nl.float32, buffer=nl.shared_hbm)
    i_p, i_f = nl.mgrid[0:128, 0:128]
    for i in nl.affine_range(5):
        nl.store(out[i_p, i * 128 + i_f], nl.load(x[i_p, i * 128 + i_f], mask=i * 128 + i_f < 600))
    return out


def input_written(x):
    nl.store(x, sbuf())


def hbm_with_value(x):
    nl.zeros((128, 512), nl.float32, buffer=nl.hbm)


def output_in_loop(x):
    for _ in nl.affine_range(2):
        nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)


def out_of_scope(x):
    for i in nl.affine_range(4):
        tile = nl.load(x[:, nl.ds(i * 128, 128)])
    nl.exp(tile)


def output_dependency(x):
    tile = nl.ndarray((128, 128), nl.float32, buffer=nl.sbuf)
    for i in nl.affine_range(4):
        tile[...] = nl.load(x[:, nl.ds(i * 128, 128)])


def int_of_index(x):
    for i in nl.affine_range(4):
        int(i)


def list_by_index(x):
    for i in nl.sequential_range(4):
        [1, 2, 3, 4][i]


def dictionary_by_index(x):
    for i in nl.affine_range(2):
        {0: x}.get(i)


def if_modulo(x):
    for i in nl.affine_range(4):
        if i % 2:
            pass


def if_modulo_compared(x):
    for i in nl.affine_range(4):
        if i % 2 == 0:
            pass


def if_arange(x):
    if nl.arange(4)[:, None] < 2:
        pass


def index_product(x):
    for i in nl.affine_range(4):
        for j in nl.affine_range(4):
            i * j


def mask_modulo(x):
    i_p, i_f = nl.mgrid[0:128, 0:128]
    for i in nl.affine_range(4):
        nl.load(x[i_p, i_f], mask=i_p < i % 2)


def arange_one_dimensional(x):
    sbuf((128, 1))[nl.arange(64), 0]


def mixed_indexing(x):
    sbuf()[nl.arange(128)[:, None], :]


def partition_stride(x):
    sbuf()[0:128:2, :]


def tensor_truth(x):
    if x:
        pass


def block_dimension_operand(x):
    nl.exp(nl.zeros((4, nl.par_dim(128), 8), nl.float32))


def dma_transpose(x):
    nisa.dma_transpose(x)


def hardware_dge(x):
    nisa.dma_copy(dst=nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm), src=x, dge_mode=nisa.dge_mode.hwdge)


def double_row(x):
    nisa.nc_matmul(sbuf((128, 2, 8), nl.float8_e5m2), sbuf((128, 2, 8), nl.float8_e5m2), perf_mode="double_row_gen3")


def reshape_on_chip(x):
    sbuf().reshape((128, 4, 128))


def pe_tile(x):
    nisa.nc_matmul(sbuf((32, 32)), sbuf((32, 512)), tile_position=(0, 0), tile_size=(32, 32))


def break_out(x):
    out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
    for _ in nl.affine_range(2):
        break
    return out


def output_not_shared(x):
    out = nl.ndarray((128, 512), nl.float32, buffer=nl.hbm)
    nl.store(out, nl.load(x))
    return out


def output_unwritten(x):
    return nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)


def output_zero_trips(x):
    out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
    for _ in nl.affine_range(0):
        nl.store(out, nl.load(x))
    return out


def output_half_written(x):
    out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
    nl.store(out[:, 0:256], nl.load(x[:, 0:256]))
    return out


def unwritten_read(x):
    out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
    tile = nl.ndarray((128, 512), nl.float32)
    tile[:, 0:256] = nl.load(x[:, 0:256])
    nl.store(out, nl.exp(tile))
    return out


def unwritten_k_tail(x):
    out = nl.ndarray((64, 512), nl.float32, buffer=nl.shared_hbm)
    i_p, i_f = nl.mgrid[0:128, 0:512]
    moving = nl.load(x[i_p, i_f], mask=i_p < 100)
    nl.store(out, nisa.nc_matmul(sbuf((128, 64)), moving))
    return out


def unwritten_accumulator(x):
    out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
    acc = nl.ndarray((128, 512), nl.float32, buffer=nl.psum)
    acc += nisa.nc_matmul(sbuf((128, 128)), nl.load(x))
    nl.store(out, acc)
    return out


def scratch_not_kept_between_iterations(x):
    out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
    for i in nl.sequential_range(4):
        tile = nl.ndarray((128, 512), nl.float32)
        tile[:, nl.ds(i * 128, 128)] = nl.load(x[:, nl.ds(i * 128, 128)])
        nl.store(out, tile)  # the other three quarters were in earlier iterations' tiles
    return out


def nine_banks(x):
    out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
    acc = nl.zeros((128, 9, 512), nl.float32, buffer=nl.psum)
    for i in nl.affine_range(9):
        acc[:, i, :] += nisa.nc_matmul(sbuf((128, 128)), sbuf())
    for i in nl.sequential_range(9):
        nl.store(out, acc[:, i, :])
    return out


def sbuf_overflow(x):
    out = nl.ndarray((128, 512), nl.float32, buffer=nl.shared_hbm)
    big = nl.ndarray((128, 88, 512), nl.float32)
    for i in nl.affine_range(88):
        big[:, i, :] = nl.load(x)
    extra = nl.load(x)
    for i in nl.sequential_range(88):
        nl.store(out, nl.add(big[:, i, :], extra))
    return out


REFUSED = [
    (partition_too_large, "129 exceeds the 128 partitions"),
    (partition_too_large_load, "256 exceeds the limit of 128"),
    (one_dimensional, "at least 2-D"),
    (matmul_k_differs, "contraction sizes differ"),
    (stationary_too_wide, "129 elements per partition, at most 128"),
    (moving_too_wide, "513 elements per partition, at most 512"),
    (matmul_from_psum, "'moving' must be in sbuf, found in psum"),
    (matmul_from_hbm, "'moving' must be in sbuf, found in hbm"),
    (matmul_integers, "takes floating types"),
    (matmul_mixed_fp32, "fp32 pairs only with fp32"),
    (matmul_result_not_fp32, "matmul results are fp32 in PSUM"),
    (matmul_straddles_banks, "straddles two PSUM banks"),
    (transpose_too_large, "exceeds 128 x 128"),
    (vector_transpose_too_large, "exceeds 32 x 32"),
    (transpose_result_not_fp32, "fp32 in PSUM"),
    (transpose_on_the_scalar_engine, "scalar engine does not transpose"),
    (transpose_of_psum_on_the_tensor_engine, "tensor engine does not transpose data in psum"),
    (two_psum_operands, "two PSUM operands"),
    (gpsimd_reads_psum, "GpSimd Engine cannot access PSUM"),
    (gpsimd_scalar_operation_on_psum, "GpSimd Engine cannot access PSUM"),
    (gpsimd_writes_psum, "GpSimd Engine cannot access PSUM"),
    (where_two_psum_operands, "two PSUM operands"),
    (matmul_straddles_banks_in_a_loop, "straddles two PSUM banks"),
    (matmul_result_spread_over_banks, "straddles two PSUM banks"),
    (five_free_axes, "walked along 5 free axes, an access pattern has 4"),
    (far_step, "a step of 32768 elements, an access pattern has 32767"),
    (neither_zero_nor_one, "is_moving_onezero=True, but moving holds 0.5"),
    (output_in_helper, "err_shared_hbm_must_in_kernel_level"),
    (plain_range, "plain range: on the device its body is traced once"),
    (scalar_engine_tensor_copy, "does not run on the scalar engine"),
    (load_from_sbuf, "'src' must be in hbm, found in sbuf"),
    (compute_on_hbm, "found in hbm"),
    (partitions_differ, "err_num_partition_mismatch"),
    (operator_broadcasts_partitions, "do not broadcast over partitions"),
    (partition_start, "must start at partition 0, 32, 64 or 96"),
    (too_many_elements, "at most 4096"),
    (bias_not_a_tile, "err_activation_bias_invalid_type"),
    (bias_integer, "bias must be float32"),
    (reciprocal_with_bias, "reciprocal takes no bias"),
    (scale_fp16, "scale must be float32"),
    (unknown_activation, "does not take the operator norm"),
    (reduce_partitions, "axis 0 is the partition axis"),
    (out_of_bounds, "0..512 is out of bounds for a dimension of 512"),
    (out_of_bounds_in_loop, "0..639 is out of bounds for a dimension of 512"),
    (mask_too_generous, "the mask leaves index range 512..599"),
    (input_written, "inputs are read-only"),
    (hbm_with_value, "err_hbm_tensor_with_init_value_not_supported"),
    (output_in_loop, "err_shared_hbm_must_in_kernel_level"),
    (out_of_scope, "err_local_variable_used_out_of_scope"),
    (output_dependency, "err_unexpected_output_dependencies"),
    (int_of_index, "integer value of a loop or tile index"),
    (list_by_index, "integer value of a loop or tile index"),
    (dictionary_by_index, "look-up by the value of a loop or tile index"),
    (if_modulo, "truth value of a loop or tile index"),
    (if_modulo_compared, "condition with `%` or `//`"),
    (if_arange, "err_control_flow_condition_depending_on_arange"),
    (index_product, "product of two indices"),
    (mask_modulo, "err_unsupported_expression_in_mask"),
    (arange_one_dimensional, "err_1d_arange_not_supported"),
    (mixed_indexing, "err_unsupported_mixing_basic_advanced_tensor_indexing"),
    (partition_stride, "no step on the partition axis"),
    (tensor_truth, "err_ambiguous_tensor_truth_value"),
    (block_dimension_operand, "err_leading_dimension_of_tensor_must_be_partition"),
    (dma_transpose, "does not exist on Trn1"),
    (hardware_dge, "does not exist on Trn1"),
    (double_row, "does not exist on NeuronCore-v2"),
    (reshape_on_chip, "issue 1051"),
    (pe_tile, "32 x 32 does not exist"),
    (break_out, "left by break or return"),
    (output_not_shared, "must be in nl.shared_hbm"),
    (output_unwritten, "err_tensor_output_not_written_to"),
    (output_zero_trips, "err_tensor_output_not_written_to"),
    (output_half_written, "32768 elements of output"),
    (unwritten_read, "never written"),
    (unwritten_k_tail, "never written"),
    (unwritten_accumulator, "accumulates into memory that was never written"),
    (scratch_not_kept_between_iterations, "never written"),
    (nine_banks, "9 PSUM banks are live at once, there are 8"),
    (sbuf_overflow, "bytes of SBUF per partition are live at once, 180224 are usable"),
]


@pytest.mark.parametrize(("kernel", "limit"), REFUSED, ids=[kernel.__name__ for kernel, _ in REFUSED])
def test_refused_with_limit_and_place(kernel, limit):
    with pytest.raises(SimulatorError) as error:
        simulate(nki.jit(kernel), X)
    assert limit in str(error.value)
    assert "test_limits.py:" in str(error.value)


def test_the_same_limits_hold_without_arithmetic():
    spec = TensorSpec(X.shape, X.dtype)
    for kernel in (nine_banks, sbuf_overflow, mask_too_generous, moving_too_wide):
        with pytest.raises(SimulatorError, match=dict(REFUSED)[kernel]):
            simulate(nki.jit(kernel), spec, count_only=True)


@pytest.mark.parametrize("module", [nki, nl, nisa])
def test_a_missing_api_is_named(module):
    assert not hasattr(module, "no_such_api")
    with pytest.raises(SimulatorError, match="no_such_api is not simulated"):
        module.no_such_api  # noqa: B018


@pytest.mark.parametrize("name", ["benchmark", "profile"])
def test_what_needs_a_device_says_so(name):
    with pytest.raises(SimulatorError, match="device"):
        getattr(nki, name)(partition_start)(np.zeros((128, 8), np.float32))


def test_apis_work_inside_kernels_only():
    with pytest.raises(SimulatorError, match="inside a kernel only"):
        nl.zeros((128, 8), nl.float32)
