"""The layer's backward pass and the head's gradient against autograd through the whole transformers model."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_dense

from nxdi_svd_plugin.checkpoint.reader import Reader
from nxdi_svd_plugin.checkpoint.source import read_config
from nxdi_svd_plugin.compress.calibrate.gradient import SLICE, Head, LayerBackward
from nxdi_svd_plugin.compress.calibrate.groups import Groups
from nxdi_svd_plugin.compress.calibrate.layer import Collector, load_layer, run_sample
from nxdi_svd_plugin.compress.calibrate.statistics import Statistics, statistics_shapes
from nxdi_svd_plugin.modeling.load import load_model

CPU = torch.device("cpu")
LENGTH = 37
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE |= {"original_max_position_embeddings": 64}
GROUPS = {"two groups": 2, "three groups, narrower than the hidden side": 3}
MODELS = {
    "llama": ("llama", {}),  # 4 query and 2 key heads of 12, hidden 44
    "llama with biases and scaled rope": ("llama", {"attention_bias": True, "rope_scaling": ROPE, "rope_theta": 5e5}),
    "one key head": ("llama", {"num_key_value_heads": 1, "hidden_size": 36, "intermediate_size": 53, "head_dim": 10}),
    "qwen3": ("qwen3", {}),
    "two groups": ("llama", {}),
    "three groups, narrower than the hidden side": ("qwen3", {}),
    "qwen3 with biases": ("qwen3", {"attention_bias": True, "num_key_value_heads": 4}),
}


def with_biases(source):
    """Attention biases, which transformers starts at zero, drawn at random."""
    path = source / "model.safetensors"
    weights, generator = load_file(path), torch.Generator().manual_seed(4)
    for name in (name for name in weights if name.endswith("bias")):
        weights[name].normal_(generator=generator)
    save_file(weights, path, metadata={"format": "pt"})
    return source


def differentiated(model, ids):
    """Inputs and loss gradients at every layer boundary, and of every MLP projection what it reads, its gradient."""
    states, seen = [], {}

    def boundary(_, args, kwargs):
        state = args[0] if args else kwargs["hidden_states"]
        state.retain_grad()
        states.append(state)

    def projection(key):
        def hook(_, args, output):
            output.retain_grad()
            seen[key] = (args[0], output)

        return hook

    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(boundary, with_kwargs=True)
        for name in ("gate_proj", "up_proj", "down_proj"):
            getattr(layer.mlp, name).register_forward_hook(projection((number, name)))
    model.model.norm.register_forward_pre_hook(boundary, with_kwargs=True)
    embedded = model.model.embed_tokens(ids).detach().requires_grad_(True)
    logits = model(inputs_embeds=embedded).logits[0]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=logits.dtype)
    (logits * weights).sum().backward()
    gradients = [state.grad[0] for state in states]
    read = {key: (x.detach()[0], output.grad[0]) for key, (x, output) in seen.items()}
    return [state.detach()[0] for state in states], gradients, read


def expected_sums(mlp, number, read, count):
    """Of the whole far sides first; a group has a block of them, seen through its weight where H is smaller."""
    x, g, w = ({}, {}, {})
    for name in ("gate", "up", "down"):
        x[name], g[name] = read[number, f"{name}_proj"]
        w[name] = getattr(mlp, f"{name}_proj").weight.detach()
    far = {"gate_gradients": (g["gate"], w["gate"]), "up_gradients": (g["up"], w["up"])}
    far["outputs"] = (x["down"], w["down"].T)
    sums = {"inputs": x["gate"].T @ x["gate"], "down_gradients": g["down"].T @ g["down"]}
    part, hidden = len(w["gate"]) // count, w["gate"].shape[1]
    for name, (vectors, weight) in far.items():
        whole, cuts = vectors.T @ vectors, [slice(k * part, (k + 1) * part) for k in range(count)]
        blocks = [(whole[at, at], weight[at]) for at in cuts]
        sums[name] = torch.stack([own if part < hidden else v.T @ own @ v for own, v in blocks])
        if part >= hidden:
            sums[name.replace("gradients", "squares").replace("outputs", "down_squares")] = whole.diagonal()
    return sums


@pytest.mark.parametrize("kind", MODELS)
def test_a_layers_backward_is_autograd_of_the_model(kind, tmp_path):
    """In float64, but for the norms, which transformers computes in float32 (2^-24 = 6e-8, two norms a layer)."""
    (family, options), count = MODELS[kind], GROUPS.get(kind, 1)
    source = with_biases(save_dense(tmp_path / "model", family, **options))
    model = load_model(source, dtype=torch.float64).requires_grad_(False)
    config, reader = read_config(source), Reader(source)
    ids = torch.randint(0, 259, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    states, gradients, read = differentiated(model, ids)
    for number in range(config.layers):
        groups = Groups(count, config.hidden, config.intermediate)
        sums = Statistics.zero(statistics_shapes(groups, "two_sided"), CPU)
        layer = LayerBackward(load_layer(reader, config, number, CPU).to(torch.float64), groups, sums)
        found = layer.gradient(states[number], gradients[number + 1])
        wanted = {"gradient": gradients[number], **expected_sums(model.model.layers[number].mlp, number, read, count)}
        assert set(wanted) == {"gradient", *sums.sums}
        for key, value in wanted.items():
            mine = found if key == "gradient" else sums.sums[key]
            bound = 1e-6 * float(value.abs().max())  # 2^-24 a few times over; a wrong term is of order one
            torch.testing.assert_close(mine, value, rtol=0, atol=bound, msg=f"{kind} {number} {key}")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_forward_pass_sums_the_same_without_gradients(count, tiny_llama):
    """Objective `input`, against the sums of the backward pass on the same sample."""
    config, reader = read_config(tiny_llama), Reader(tiny_llama)
    model, groups = load_layer(reader, config, 0, CPU), Groups(count, config.hidden, config.intermediate)
    sample = torch.randn(LENGTH, config.hidden, generator=torch.Generator().manual_seed(1))
    sums, wanted = (Statistics.zero(statistics_shapes(groups, kind), CPU) for kind in ("input", "two_sided"))
    with Collector(model, groups, sums):
        run_sample(model, sample)
    LayerBackward(model.to(torch.float64), groups, wanted).gradient(sample.double(), sample.double())
    assert set(sums.sums) == {"inputs", "outputs"}
    for name, found in sums.sums.items():
        bound = 1e-6 * float(wanted.sums[name].abs().max())  # the activations are float32
        torch.testing.assert_close(found, wanted.sums[name], rtol=0, atol=bound)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("length", [1, SLICE, 2 * SLICE + 5])
def test_the_heads_gradient_is_autograd_of_the_loss(family, length, request):
    """Labels: the first token whose cumulative probability exceeds the token's uniform number, in float64."""
    source = request.getfixturevalue(f"tiny_{family}")
    config, model = read_config(source), load_model(source, dtype=torch.float64)
    hidden = torch.randn(length, config.hidden, generator=torch.Generator().manual_seed(3))
    found = Head(Reader(source), config, CPU).gradient(hidden, seed=5)
    x = hidden.double().requires_grad_(True)
    logits = model.lm_head(model.model.norm(x))
    uniform = torch.rand(length, 1, generator=torch.Generator().manual_seed(5))
    labels = (logits.detach().softmax(-1).cumsum(-1) <= uniform).sum(-1)
    assert length == 1 or len(labels.unique()) > 30
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    # float32: hidden products of 44 terms and 259 odds, each 2^-24 relative to the largest
    torch.testing.assert_close(found.double(), x.grad, rtol=0, atol=2e-6 * float(x.grad.abs().max()))


def test_labels_are_drawn_with_the_models_probabilities(tiny_llama):
    """8,192 draws for one token: every count within five standard deviations, none where the odds are nothing."""
    config, head = read_config(tiny_llama), Head(Reader(tiny_llama), read_config(tiny_llama), CPU)
    state = torch.randn(1, config.hidden, generator=torch.Generator().manual_seed(0))
    normed, drawn = head.norm(state).expand(8192, -1).contiguous(), []
    uniform = torch.rand(8192, 1, generator=torch.Generator().manual_seed(1))
    odds = (normed[:1] @ head.weight.T).double().softmax(-1)[0]
    mean = odds @ head.weight.double()
    for start in range(0, 8192, SLICE):
        gradient = head.pull(normed[start : start + SLICE], uniform[start : start + SLICE]).double()
        drawn.append(torch.cdist(mean - gradient, head.weight.double()).argmin(-1))
    counts = torch.bincount(torch.cat(drawn), minlength=len(odds))
    assert bool(((counts - 8192 * odds).abs() <= 5 * (8192 * odds * (1 - odds)).sqrt() + 1).all())
