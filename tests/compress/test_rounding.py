"""The error of stored factors in bfloat16: against first-order rounding theory, and on layers of SmolLM2."""

import math

import pytest
import torch
from torch.nn import functional

from nxdi_svd_plugin.compress.calibrate.statistics import Statistics
from nxdi_svd_plugin.compress.factor.layer import LayerFactors, factor_layer
from nxdi_svd_plugin.compress.factor.rounding import bf16_error, stored_errors, stored_layer, warn
from nxdi_svd_plugin.compress.factor.spectra import decompose, restore
from nxdi_svd_plugin.compress.forms import named
from nxdi_svd_plugin.compress.run.run import compress
from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.evaluate.perplexity import token_ids
from nxdi_svd_plugin.factorize.interpolative import interpolate
from nxdi_svd_plugin.modeling.load import load_model
from nxdi_svd_plugin.modeling.tokenizer import load_tokenizer
from nxdi_svd_plugin.recipe import from_dict
from nxdi_svd_plugin.stored.layers import Mlp
from nxdi_svd_plugin.stored.projection import DENSE, LowRank
from nxdi_svd_plugin.texts import HELDOUT, read_text

# bfloat16 has 8 significant bits: a number m 2^e, 1 <= m < 2, moves by an error uniform within 2^-8 / m (half a step)
# of its size: rms 2^-8 / m / sqrt(3). With m distributed as 1 / m (any smooth spread over several octaves), E[1 / m^2]
# is 3 / (8 ln 2).
ROUNDING = 2**-8 / math.sqrt(3) * math.sqrt(3 / (8 * math.log(2)))


def factors(weights, sums, tokens, form, rank, block):
    """A whole layer by the input objective."""
    recipe = from_dict({"recipe": "paper", "form": "interpolative"})  # not the paper's
    kept = decompose(recipe, sums, tokens, weights.items())
    found = {name: restore(recipe, kept, tokens, name, w) for name, w in weights.items()}
    width = weights["gate_proj"].shape[0]
    return factor_layer(
        weights.__getitem__, found.__getitem__, Mlp(width, *[named(form).planned(rank)] * 3), named(form), block
    )


def gate(rank, seed, scale=1.0):
    """Gate of 96 -> 256 in interpolative form, coefficients of size `scale`."""
    gen = torch.Generator().manual_seed(seed)
    u = torch.randn(96, rank, generator=gen, dtype=torch.float64)
    c = scale * torch.randn(rank, 256 - rank, generator=gen, dtype=torch.float64)
    mlp = Mlp(256, LowRank(rank, ((0, rank),)), DENSE, DENSE)
    return LayerFactors(mlp, {"gate_proj.u": u, "gate_proj.c": c}, None, {})


@pytest.mark.parametrize(("rank", "scale"), [(32, 0.2), (64, 0.2), (64, 2.0), (64, 20.0)])
def test_rounding_follows_first_order_theory(rank, scale):
    """Independent roundings of x, u, z = x u, C and the output add their variances, each carried on exactly."""
    made = gate(rank, seed=rank, scale=scale)
    u, c = made.tensors["gate_proj.u"], made.tensors["gate_proj.c"]
    x = torch.randn(200, 96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide = torch.cat([torch.eye(rank, dtype=torch.float64), c], 1)
    z, squares = x @ u, wide.square()
    variance = x.square() @ (u @ wide).square() + x.square() @ u.square() @ squares + z.square() @ squares
    variance[:, rank:] += z.square() @ c.square() + (z @ c).square()
    expected = ROUNDING * float((variance.sum() / (x @ u @ wide).square().sum()).sqrt())
    # 200 x 256 outputs share 96 x rank roundings of u: their mean square scatters by less than 2 %; the mantissas of
    # Gaussian numbers are within 3 % of the assumed spread
    assert bf16_error(stored_layer(made, "gate_proj", made.mlp.gate, 96), x) == pytest.approx(expected, rel=0.1)


def test_a_singular_pivot_set_shows(caplog):
    """u v with pivots that nearly coincide: C is huge and cancels, and the measure says so."""
    gen = torch.Generator().manual_seed(0)
    v = torch.randn(8, 64, generator=gen, dtype=torch.float64)
    v[:, 1] = v[:, 0] + 1e-3 * v[:, 1]
    u = torch.randn(24, 8, generator=gen, dtype=torch.float64)
    errors = {}
    for name, pivots in (("chosen", interpolate([v], [[torch.arange(64)]], 8)[0].pivots), ("forced", torch.arange(8))):
        rest = torch.ones(64, dtype=torch.bool)
        rest[pivots] = False
        tensors = {"gate_proj.u": u @ v[:, pivots], "gate_proj.c": torch.linalg.solve(v[:, pivots], v[:, rest])}
        made = LayerFactors(Mlp(64, LowRank(8, ((0, 8),)), DENSE, DENSE), tensors, None, {})
        x = torch.randn(100, 24, generator=gen, dtype=torch.float64)
        errors[name] = bf16_error(stored_layer(made, "gate_proj", made.mlp.gate, 24), x)
    assert errors["chosen"] < 0.015 and errors["forced"] > 0.1
    records = {"gate_proj": errors["forced"], "up_proj": errors["chosen"], "down_proj": errors["chosen"]}
    warn(3, {name: {"bf16_error": e, "limited": 0.02 * (name == "down_proj")} for name, e in records.items()})
    message, limited = caplog.messages
    assert "layer 3 gate_proj: bfloat16 adds" in message and "--dense 3.gate_proj" in message
    assert "layer 3 down_proj: the limit of max abs C changes its matrix by 2.00%" in limited
    with pytest.raises(SvdError, match="layer 3 up_proj: the limit of max abs C changes its outputs by 4892%"):
        warn(3, {"up_proj": {"limited": 0.5, "relative_error": 48.92}})


def test_where_growth_is_limited_the_output_error_is_that_of_the_stored_factors(monkeypatch):
    """Against 20,000 other Gaussian inputs of the same covariance; a mean over 256 leaves some percent."""
    monkeypatch.setattr("nxdi_svd_plugin.factorize.interpolative.GROWTH_LIMIT", 0.4)
    gen = torch.Generator().manual_seed(3)
    shapes = {"gate_proj": (64, 24), "up_proj": (64, 24), "down_proj": (24, 64)}
    weights = {name: torch.randn(*shape, generator=gen, dtype=torch.float64) for name, shape in shapes.items()}
    x = torch.randn(20_000, 24, generator=gen, dtype=torch.float64) * torch.linspace(0.2, 2, 24, dtype=torch.float64)
    inner = functional.silu(x @ weights["gate_proj"].T) * (x @ weights["up_proj"].T)
    exact = {name: (inner if name == "down_proj" else x) @ weight.T for name, weight in weights.items()}
    sums = Statistics({"inputs": x.T @ x, "outputs": (exact["down_proj"].T @ exact["down_proj"])[None]})
    made = factors(weights, sums, len(x), "interpolative", 16, 8)
    errors = stored_errors(made, weights.__getitem__, sums.inputs / len(x))
    for name in shapes:
        down = name == "down_proj"
        y = stored_layer(made, name, made.mlp[name], 24)(inner[:, made.order] if down else x).detach()
        truth = y - (exact[name] if down else exact[name][:, made.order])
        truth = float(truth.norm() / exact[name].norm())
        assert made.measured[name]["limited"] > 0.02
        assert errors[name]["relative_error"] == pytest.approx(truth, rel=0.1)


def test_every_compressed_projection_has_its_error_in_the_report(tiny_llama, tmp_path):
    recipe = {"block": 4, "ratio": 0.1, "calibration": {"samples": 4, "length": 40}, "dense": ["1.up_proj"]}
    report = compress(tiny_llama, tmp_path / "out", from_dict(recipe), progress=False)
    ranked = [m for m in report.matrices if m.rank]
    assert ranked and all(ROUNDING < m.bf16_error < 0.1 and 0 < m.relative_error < 1 for m in ranked)
    text = report.to_text()
    assert "error that bfloat16 adds to an output: at most" in text and "max abs C: at most" in text


RANKS_OF_LAYERS = {2: 512, 12: 384, 25: 384}


@pytest.fixture(scope="module")
def real(smollm2):
    """{layer: (its MLP, what it reads on 2,048 tokens of text)}, out of one run of the model."""
    model, seen = load_model(smollm2, torch.float32).eval(), {}
    mlps = {layer: model.model.layers[layer].mlp for layer in RANKS_OF_LAYERS}
    for layer, mlp in mlps.items():
        mlp.register_forward_pre_hook(lambda _, args, layer=layer: seen.update({layer: args[0].flatten(0, 1)}))
    model.model.layers = model.model.layers[: max(RANKS_OF_LAYERS) + 1]
    with torch.no_grad():
        model.model(token_ids(load_tokenizer(smollm2), read_text(HELDOUT).content, 2048).view(4, 512))
    return {layer: (mlp, seen[layer].double()) for layer, mlp in mlps.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "rank"), RANKS_OF_LAYERS.items())
def test_smollm2_adds_about_one_percent(real, layer, rank):
    """Three layers on 2,048 tokens of real activations: a pair has three roundings of 0.17 % each (x, and twice a
    factor and a product), so 0.3-0.4 %; the interpolative form stays near 1 %. The report's probes are near the truth.
    """
    mlp, x = real[layer]
    weights = {name: getattr(mlp, name).weight.detach() for name in ("gate_proj", "up_proj", "down_proj")}
    wide = {name: weight.double() for name, weight in weights.items()}
    inner = functional.silu(x @ wide["gate_proj"].T) * (x @ wide["up_proj"].T)
    y = inner @ wide["down_proj"].T
    sums = Statistics({"inputs": x.T @ x, "outputs": (y.T @ y)[None]})
    errors, probed = {}, {}
    for form in ("interpolative", "pair"):
        made = factors(weights, sums, len(x), form, rank, 64)
        probed[form] = stored_errors(made, weights.__getitem__, sums.inputs / len(x))
        hidden = inner if made.order is None else inner[:, made.order]
        for name in weights:
            read = hidden if name == "down_proj" else x
            errors[form, name] = bf16_error(stored_layer(made, name, made.mlp[name], x.shape[1]), read)
    for name in weights:
        assert errors["pair", name] < 0.005 < errors["interpolative", name] < 0.02
        assert probed["interpolative"][name]["bf16_error"] == pytest.approx(errors["interpolative", name], rel=0.5)
