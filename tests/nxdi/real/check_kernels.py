"""The NxDI model through the kernels on the simulator in place of the device: layout, orientation, padding."""

import os
import re

os.environ["NXDI_SVD_NKI"] = "simulator"  # the stubs of neuronxcc must not be taken for the compiler

import numpy as np
import pytest
import ranks
import torch
from check_logits import save_interpolative
from cpu_models import app_class, dense_reference, greedy, load_on_cpu, reference_logits
from tiny_models import save_dense, save_factored

from nxdi_svd_plugin import load_pretrained
from nxdi_svd_plugin.errors import NxdiError
from nxdi_svd_plugin.nxdi import device, mlp
from nxdi_svd_plugin.simulator import simulate
from nxdi_svd_plugin.stored.kernel_fit import kernel_fit
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import DENSE, LowRank


def bridge(name, kernel, called):
    """A kernel as a function of torch tensors, through numpy and the simulator."""

    def in_numpy(given):
        return [each.detach().numpy() for each in given] if isinstance(given, list) else given.detach().numpy()

    def call(*given, pivots):
        first = given[0][0] if isinstance(given[0], list) else given[0]
        called.append((name, tuple(first.shape)))
        output, _ = simulate(kernel, *map(in_numpy, given), pivots=pivots, aws_style=True)
        several = isinstance(output, tuple)
        return tuple(map(torch.from_numpy, map(np.array, output))) if several else torch.from_numpy(np.array(output))

    return call


def with_simulated_kernels(function, *args, **kwargs):
    """function(...) with the device's calls answered by the simulator; also the calls that were made."""
    from nxdi_svd_plugin.kernels.fused_down import down
    from nxdi_svd_plugin.kernels.fused_mlp import mlp as whole
    from nxdi_svd_plugin.kernels.fused_up_gate import up_gate

    called = []
    device.plain_reason = lambda x: None
    device.require_kernels = lambda: None
    kernels = {"up_gate": up_gate, "down": down, "mlp": whole}
    calls = device.Calls(**{name: bridge(name, kernel, called) for name, kernel in kernels.items()})
    device.kernel_calls = lambda: calls
    return function(*args, **kwargs), called


def with_two_kernels(function, *args, **kwargs):
    """The same for a model so large that few tokens, too, go through `up_gate` and `down`."""
    mlp.fits = lambda *_: False
    return with_simulated_kernels(function, *args, **kwargs)


def with_a_call_each(function, *args, **kwargs):
    """The same where one call for all groups of a core would be slower."""
    mlp.calls_of = lambda chain, groups: groups
    return with_two_kernels(function, *args, **kwargs)


def decode(family, directory, prompt, steps, **options):
    tokens, logits = greedy(load_on_cpu(app_class(family), directory, mlp_impl="svd_fused", **options), prompt, steps)
    return {"tokens": tokens, "logits": logits}


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_model_through_the_kernels(family, tp, request):
    """Prefill of 7 tokens in a context of 48, then two decoding steps; layer 1 keeps its down projection dense."""
    directory = request.getfixturevalue(f"svd_{family}")
    prompt = torch.tensor([[5, 17, 201, 88, 3, 42, 9]])
    results = ranks.run(tp, with_two_kernels, decode, family, directory, prompt, 3, tp_degree=tp)
    expected = reference_logits(dense_reference(directory, family), results[0][0]["tokens"], 7)
    for found, called in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=5e-5 * expected.abs().max())
        assert [name for name, _ in called].count("up_gate") == 9
        assert [name for name, _ in called].count("down") == 6
        assert ("up_gate", (1, 44)) in called  # decoding
        assert max(shape[0] for name, shape in called if name == "up_gate") >= 7  # prefill


@pytest.mark.parametrize(
    ("intermediate", "tp", "kept"), [(512, 2, ()), (256, 1, ()), (99, 2, ()), (99, 2, ("gate_proj",))], ids=str
)
def test_round_and_odd_shards(intermediate, tp, kept, tmp_path):
    """I / tp = 256 takes the interleaved layout of the intermediate axis, 99 is padded to 100; a dense gate too."""
    dense = save_dense(tmp_path / "dense", "llama", vocab_size=260, intermediate_size=intermediate, num_hidden_layers=1)
    directory = save_factored(dense, tmp_path / "svd", 40, tuple((0, name) for name in kept))
    prompt = torch.randint(0, 260, (2, 20), generator=torch.Generator().manual_seed(0))
    options = {"tp_degree": tp, "batch_size": 2}
    results = ranks.run(tp, with_two_kernels, decode, "llama", directory, prompt, 2, **options)
    expected = reference_logits(dense_reference(directory, "llama"), results[0][0]["tokens"], 20)
    for found, _ in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=5e-5 * expected.abs().max())


def test_sequence_parallelism_through_the_kernels(svd_llama):
    prompt = torch.tensor([[5, 17, 201, 88, 3, 42, 9]])
    options = {"tp_degree": 2, "sequence_parallel_enabled": True, "is_continuous_batching": True}
    results = ranks.run(2, with_two_kernels, decode, "llama", svd_llama, prompt, 3, **options)
    expected = reference_logits(dense_reference(svd_llama, "llama"), results[0][0]["tokens"], 7)
    for found, called in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=5e-5 * expected.abs().max())
        assert ("up_gate", (48, 44)) in called  # the gathered prefill, padded to its bucket
        assert ("up_gate", (1, 44)) in called


@pytest.mark.parametrize("tp", [1, 2])
def test_few_tokens_go_through_one_kernel(tp, svd_llama):
    """Prefill of 140 tokens through two kernels, a step through one; layer 1, whose down is dense, has no `mlp`."""
    prompt = torch.randint(0, 200, (1, 140), generator=torch.Generator().manual_seed(0))
    options = {"tp_degree": tp, "seq_len": 160, "max_context_length": 160}
    results = ranks.run(tp, with_simulated_kernels, decode, "llama", svd_llama, prompt, 3, **options)
    expected = reference_logits(dense_reference(svd_llama, "llama"), results[0][0]["tokens"], 140)
    for found, called in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=5e-5 * expected.abs().max())
        names = [name for name, _ in called]
        assert (names.count("mlp"), names.count("up_gate"), names.count("down")) == (2 * 2, 3 + 2, 2)
        assert {shape for name, shape in called if name == "mlp"} == {(1, 44)}
        assert min(shape[0] for name, shape in called if name == "up_gate") == 1
        assert min(shape[1] for name, shape in called if name == "down") >= 140


UP_GATE = {"gate_proj": ((0, 256),), "up_proj": ((256, 512), (768, 1024))}
DOWN = {"down_proj": ((0, 256), (1280, 1536))}


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("pivots", [UP_GATE | DOWN, UP_GATE, DOWN], ids=["all", "up_gate", "down"])
def test_interpolative_factors_through_the_kernels(pivots, tp, tmp_path):
    """Pivots of every projection in places of their own, in whole tiles on each rank; dense where none are given."""
    sizes = {"vocab_size": 260, "intermediate_size": 1536, "num_hidden_layers": 1}
    directory = save_interpolative(save_dense(tmp_path / "dense", "llama", **sizes), tmp_path / "svd", pivots)
    prompt = torch.randint(0, 260, (2, 20), generator=torch.Generator().manual_seed(0))
    options = {"tp_degree": tp, "batch_size": 2}
    results = ranks.run(tp, with_two_kernels, decode, "llama", directory, prompt, 2, **options)
    expected = reference_logits(load_pretrained(directory, dtype=torch.float32), results[0][0]["tokens"], 20)
    for found, called in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=5e-5 * expected.abs().max())
        kernels = {"up_gate"} if "gate_proj" in pivots else set()
        assert {name for name, _ in called} == kernels | ({"down"} if "down_proj" in pivots else set())


@pytest.mark.parametrize("one", [True, False], ids=["mlp", "two kernels"])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("pairs", [("down_proj",), ("gate_proj", "up_proj"), ()], ids=["down", "gate and up", "none"])
def test_pairs_beside_pivots_agree_on_the_order_of_the_neurons(pairs, tp, one, tmp_path):
    sizes = {"vocab_size": 260, "intermediate_size": 1536, "num_hidden_layers": 1}
    pivots = {name: runs for name, runs in (UP_GATE | DOWN).items() if name not in pairs}
    directory = save_interpolative(
        save_dense(tmp_path / "dense", "llama", **sizes), tmp_path / "svd", pivots, pairs=pairs
    )
    prompt = torch.randint(0, 260, (2, 20), generator=torch.Generator().manual_seed(0))
    options = {"tp_degree": tp, "batch_size": 2}
    run = with_simulated_kernels if one else with_two_kernels
    results = ranks.run(tp, run, decode, "llama", directory, prompt, 2, **options)
    expected = reference_logits(load_pretrained(directory, dtype=torch.float32), results[0][0]["tokens"], 20)
    for found, called in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=5e-5 * expected.abs().max())
        assert {name for name, _ in called} == ({"mlp"} if one else {"up_gate", "down"})


@pytest.mark.parametrize("tp", [1, 2])
def test_the_kernel_layout_of_interpolative_factors_on_the_cpu(tp, tmp_path):
    sizes = {"vocab_size": 260, "intermediate_size": 1536, "num_hidden_layers": 1}
    dense = save_dense(tmp_path / "dense", "llama", **sizes)
    directory = save_interpolative(dense, tmp_path / "svd", UP_GATE | DOWN)
    prompt = torch.tensor([[5, 17, 201, 88, 3, 42, 9]])
    results = ranks.run(tp, decode, "llama", directory, prompt, 2, tp_degree=tp)
    expected = reference_logits(load_pretrained(directory, dtype=torch.float32), results[0]["tokens"], 7)
    for found in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=2e-5 * expected.abs().max())


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("pivots", [UP_GATE | DOWN, DOWN], ids=["all", "down"])
def test_a_narrow_layer_through_the_kernels(pivots, tp, tmp_path):
    """1536 of 1600 neurons are kept: what the kernels get is as wide as the layer, not as config.json says."""
    sizes = {"vocab_size": 260, "intermediate_size": 1600, "num_hidden_layers": 1}
    dense = save_dense(tmp_path / "dense", "llama", **sizes)
    directory = save_interpolative(dense, tmp_path / "svd", pivots, ((0, 1536),))
    prompt = torch.randint(0, 260, (1, 20), generator=torch.Generator().manual_seed(0))
    results = ranks.run(tp, with_two_kernels, decode, "llama", directory, prompt, 2, tp_degree=tp)
    expected = reference_logits(load_pretrained(directory, dtype=torch.float32), results[0][0]["tokens"], 20)
    for found, called in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=5e-5 * expected.abs().max())
        assert ("down", (1536 // tp, 1)) in called


def test_narrow_pairs_through_the_kernels(svd_llama, tmp_path):
    """77 of 90 neurons on two ranks: the odd one is padded."""
    directory = save_factored(svd_llama.parent / "dense", tmp_path / "svd", 20, (), ((0, 77), (2, 50)))
    prompt = torch.tensor([[5, 17, 201, 88, 3, 42, 9]])
    results = ranks.run(2, with_two_kernels, decode, "llama", directory, prompt, 2, tp_degree=2)
    expected = reference_logits(dense_reference(directory, "llama"), results[0][0]["tokens"], 7)
    for found, called in results:
        torch.testing.assert_close(found["logits"], expected, rtol=0, atol=5e-5 * expected.abs().max())
        assert {shape[0] for name, shape in called if name == "down"} == {39, 45, 25}


TOGETHER = "up_proj: the kernel takes gate and up together"
LOGGED = [
    (LowRank(20), LowRank(20), LowRank(20), 1, []),
    (DENSE, LowRank(20), LowRank(20), 1, ["WARNING", f"gate_proj: it is dense; {TOGETHER}"]),
    (LowRank(20), LowRank(20), DENSE, 1, ["WARNING", "down_proj: it is dense"]),
    (LowRank(128), LowRank(128, ((0, 128),)), DENSE, 1, ["WARNING", "gate is pair and up interpolative"]),
    (LowRank(20), LowRank(20), LowRank(128, ((0, 128),)), 2, ["WARNING", "runs interpolative.*PyTorch", "INFO", "--b"]),
]


@pytest.mark.parametrize(("gate", "up", "down", "tp", "expected"), LOGGED, ids=range(len(LOGGED)))
def test_a_half_without_kernel_is_logged_with_its_reason(gate, up, down, tp, expected, caplog):
    mlp.announce_misfit.cache_clear()
    fit = kernel_fit(Mlp(512, gate, up, down), tp)
    with caplog.at_level("INFO"):
        mlp.log_fit(7, fit)
        if fit.misfit:
            mlp.announce_misfit()  # nothing more: it is said once
    assert [record.levelname for record in caplog.records] == expected[::2]
    for record, message in zip(caplog.records, expected[1::2], strict=True):
        assert re.search(message, record.getMessage())
        assert ("layer 7 runs without kernel: " in record.getMessage()) == ("PyTorch" not in message)


class OnDevice:
    """What the choice looks at: a tensor that is not on the CPU."""

    device = torch.device("meta")


@pytest.fixture
def on_trn1(monkeypatch):
    monkeypatch.setattr(device, "cpu_mode", lambda: False)
    monkeypatch.setattr(device, "get_platform_target", lambda: "trn1")
    return monkeypatch


def sdk_of(monkeypatch, nxdi):
    from nxdi_svd_plugin import versions

    monkeypatch.setattr(device.upstream, "sdk", lambda: versions.sdk_of(nxdi))


def test_the_plain_path_is_announced_once(caplog):
    device.announce.cache_clear()
    with caplog.at_level("WARNING"):
        assert not device.runs_kernels(torch.zeros(1))
        assert not device.runs_kernels(torch.zeros(1))
    assert [record.message for record in caplog.records].count(
        "mlp_impl='svd_fused' runs as PyTorch ops, not as NKI kernels: NxDI runs on the CPU"
    ) == 1


def test_another_platform_takes_the_plain_path(on_trn1):
    on_trn1.setattr(device, "get_platform_target", lambda: "trn2")
    assert device.plain_reason(OnDevice()) == "the kernels are written for trn1 and this is trn2"


def test_an_sdk_without_trn1_kernels_is_an_error(on_trn1):
    sdk_of(on_trn1, "0.9.0")
    with pytest.raises(NxdiError, match=r"needs Neuron SDK 2.26 to 2.28 on trn1; this is SDK 2.29 .*mlp_impl='svd'"):
        device.runs_kernels(OnDevice())


def test_no_compiler_is_an_error(on_trn1):
    sdk_of(on_trn1, "0.8.0")
    with pytest.raises(NxdiError, match="neuronxcc.nki.*does not import"):
        device.runs_kernels(OnDevice())


def test_the_kernels_are_built_for_the_platform(on_trn1):
    from nxdi_svd_plugin.kernels import nki
    from nxdi_svd_plugin.kernels.fused_down import down_kernel
    from nxdi_svd_plugin.kernels.fused_mlp import mlp_kernel
    from nxdi_svd_plugin.kernels.fused_up_gate import up_gate_kernel

    built = []

    class Compiler:
        @staticmethod
        def jit(function, **options):
            built.append((function, options))
            return function

    sdk_of(on_trn1, "0.8.0")
    on_trn1.setattr(nki, "SOURCE", "neuronxcc")
    on_trn1.setattr(nki, "nki", Compiler)
    device.kernel_calls.cache_clear()
    assert device.runs_kernels(OnDevice())
    assert built == []  # lazily
    assert device.kernel_calls() is device.kernel_calls()
    options = {"platform_target": "trn1"}
    assert built == [(kernel, options) for kernel in (up_gate_kernel, down_kernel, mlp_kernel)]
    device.kernel_calls.cache_clear()
