"""Count-only mode gives exactly the counters of the executed run, on the plugin's own kernels with tails and masks."""

import numpy as np
import pytest

from nxdi_svd_plugin.kernels import down, matmul, pack, up_gate, xuv
from nxdi_svd_plugin.simulator import TensorSpec, simulate
from nxdi_svd_plugin.simulator.front import language as nl

RNG = np.random.default_rng(0)


def normal(*shape):
    return (0.1 * RNG.standard_normal(shape)).astype(nl.bfloat16)


def cases():
    for tokens in (1, 8, 77, 300):
        yield f"xuv {tokens}", xuv, [normal(tokens, 200), *pack(normal(200, 72), normal(72, 330))], {}
        weights = pack(normal(256, 128), normal(128, 600))
        yield f"xuv transposed {tokens}", xuv, [normal(tokens, 256), *weights], {"transposed_output": True}
        pairs = [f for _ in range(2) for f in pack(normal(200, 72), normal(72, 330), kernel="up_gate")]
        yield f"up_gate {tokens}", up_gate, [normal(tokens, 200), *pairs], {}
        yield f"down {tokens}", down, [normal(330, tokens), *pack(normal(330, 72), normal(72, 200), kernel="down")], {}
    yield "matmul", matmul, [normal(200, 300), normal(200, 530)], {}


@pytest.mark.parametrize(("kernel", "arrays", "options"), [pytest.param(*c[1:], id=c[0]) for c in cases()])
def test_count_only_equals_execution(kernel, arrays, options):
    _, executed = simulate(kernel, *arrays, **options)
    specs = [TensorSpec(a.shape, a.dtype) for a in arrays]
    _, counted = simulate(kernel, *specs, count_only=True, **options)
    assert counted == executed
    assert executed.spill_save_bytes == 0
