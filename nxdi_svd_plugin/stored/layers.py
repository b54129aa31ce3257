"""The stored MLPs of a model, and the `svd_config` object of config.json that says what they are.

    {"format_version": 2, "plugin_version": "0.1.0", "groups": 1,
     "layers": {"0": {"width": 1536,
                      "gate_proj": {"form": "pair", "rank": 384},
                      "up_proj": {"form": "interpolative", "rank": 384, "pivots": [[0, 256], [512, 640]]},
                      "down_proj": {"form": "dense"}}, ...},
     "ratio": {"asked": 0.1, "target": "mlp", "mlp": 0.083, "model": 0.049},
     "source": {...}, "recipe": {...}, "versions": {...}}

Layer keys are strings because NxDI writes the config with `json.dumps(sort_keys=True)`. docs/format.md has the whole
format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.stored.projection import PROJECTIONS, READS, LowRank, Projection, Shape, parse_projection

FORMAT_VERSION = 2
MODEL_TYPES = {"llama": "svd_llama", "qwen3": "svd_qwen3"}
ARCHITECTURES = {"llama": "SvdLlamaForCausalLM", "qwen3": "SvdQwen3ForCausalLM"}


@dataclass(frozen=True)
class Mlp:
    """What one layer stores.

    width: intermediate neurons that the layer keeps, at most the model's intermediate size.
    Raises:
        CheckpointError: projections that do not fit the width or each other.
    """

    width: int
    gate: Projection
    up: Projection
    down: Projection

    def __post_init__(self) -> None:
        groups = {p.groups for _, p in self.items() if isinstance(p, LowRank)}
        if self.width < 1 or len(groups) > 1:
            raise CheckpointError(
                f"an MLP of width {self.width} with projections in {sorted(groups)} groups; expected at least one "
                "neuron, and one number of groups"
            )
        self.tensors(1)  # raises where pivots or groups do not fit the width

    @property
    def groups(self) -> int:
        """Slices of the width that are factored on their own; 1 where all is dense."""
        return next((p.groups for _, p in self.items() if isinstance(p, LowRank)), 1)

    def __getitem__(self, name: str) -> Projection:
        """The projection "gate_proj", "up_proj" or "down_proj"."""
        return dict(self.items())[name]

    def items(self) -> Iterator[tuple[str, Projection]]:
        """(name, projection) of gate, up and down."""
        return iter(zip(PROJECTIONS, (self.gate, self.up, self.down), strict=True))

    def tensors(self, hidden: int) -> dict[str, Shape]:
        """Names (after `mlp.`) and shapes of all tensors on disk."""
        return {
            f"{name}.{tensor}": shape
            for name, projection in self.items()
            for tensor, shape in projection.tensors(READS[name], hidden, self.width).items()
        }

    def parameters(self, hidden: int) -> int:
        """Numbers stored."""
        return sum(projection.parameters(hidden, self.width) for _, projection in self.items())

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this layer."""
        return {"width": self.width, **{name: projection.to_dict() for name, projection in self.items()}}


def mlp_of(width: int, projections: Mapping[str, Projection]) -> Mlp:
    """An Mlp out of its projections by name."""
    return Mlp(width, *(projections[name] for name in PROJECTIONS))


Layers = dict[int, Mlp]


def alike(layers: Mapping[int, Mlp]) -> dict[Mlp, list[int]]:
    """The layers that store the same, by what they store."""
    found: dict[Mlp, list[int]] = {}
    for index, mlp in layers.items():
        found.setdefault(mlp, []).append(index)
    return found


def groups_of(layers: Mapping[int, Mlp]) -> int:
    """The groups of a model.

    Raises:
        CheckpointError: its layers differ.
    """
    found = {mlp.groups for mlp in layers.values() if any(isinstance(p, LowRank) for _, p in mlp.items())} or {1}
    if len(found) > 1:
        raise CheckpointError(f"layers with {sorted(found)} groups in one model; expected one number")
    return found.pop()


def layers_to_json(layers: Mapping[int, Mlp]) -> dict[str, Any]:
    """The keys `groups` and `layers` of svd_config."""
    return {"groups": groups_of(layers), "layers": {str(i): mlp.to_dict() for i, mlp in sorted(layers.items())}}


def parse_layers(svd_config: Mapping[str, Any], num_layers: int, intermediate: int) -> Layers:
    """Read and check what svd_config says about the layers.

    Args:
        svd_config: the object from config.json.
        num_layers, intermediate: `num_hidden_layers` and `intermediate_size` of the same config.
    Raises:
        CheckpointError: another format_version, a missing or extra layer or projection, an unknown form.
    """
    _check_version(svd_config.get("format_version"))
    groups, found = svd_config.get("groups"), svd_config.get("layers")
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise CheckpointError(f"svd_config has groups {groups!r}; expected a whole number of at least 1")
    expected = {str(i) for i in range(num_layers)}
    if not isinstance(found, Mapping) or set(found) != expected:
        keys = sorted(found) if isinstance(found, Mapping) else found
        raise CheckpointError(f"svd_config has layers {keys}; config.json says num_hidden_layers = {num_layers}")
    return {int(i): _parse_layer(i, layer, groups, intermediate) for i, layer in found.items()}


def _check_version(version: Any) -> None:
    if version == 1:
        raise CheckpointError(
            "svd_config has format_version 1, which no release wrote; make the directory again with `nxdi-svd compress`"
        )
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise CheckpointError(
            f"svd_config has format_version {version!r}; this version reads {FORMAT_VERSION}. Upgrade nxdi-svd-plugin"
        )


def _parse_layer(index: str, layer: Any, groups: int, intermediate: int) -> Mlp:
    if not isinstance(layer, Mapping) or set(layer) != {"width", *PROJECTIONS}:
        raise CheckpointError(f"svd_config layer {index} is {layer!r}; expected width, {', '.join(PROJECTIONS)}")
    width = layer["width"]
    if not isinstance(width, int) or isinstance(width, bool) or not 1 <= width <= intermediate:
        raise CheckpointError(
            f"svd_config layer {index} has width {width!r}; expected 1 to the intermediate_size {intermediate}"
        )
    try:
        return mlp_of(width, {name: parse_projection(layer[name], groups) for name in PROJECTIONS})
    except CheckpointError as error:
        raise CheckpointError(f"svd_config layer {index}: {error}") from error
