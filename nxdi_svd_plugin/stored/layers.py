"""The `svd_config` object of a compressed checkpoint's config.json: form and rank of every MLP projection.

    {"format_version": 1, "plugin_version": "0.1.0",
     "layers": {"0": {"gate_proj": {"form": "factored", "rank": 384},
                      "up_proj": {"form": "interpolative", "rank": 384, "pivots": [[0, 256], [512, 640]]},
                      "down_proj": {"form": "dense"}}, ...},
     "ratio": {"asked": 0.1, "target": "mlp", "mlp": 0.083, "model": 0.049},
     "source": {...}, "recipe": {...}, "versions": {...}}

Layer keys are strings because NxDI writes the config with `json.dumps(sort_keys=True)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nxdi_svd_plugin.errors import CheckpointError

FORMAT_VERSION = 1
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
MODEL_TYPES = {"llama": "svd_llama", "qwen3": "svd_qwen3"}
ARCHITECTURES = {"llama": "SvdLlamaForCausalLM", "qwen3": "SvdQwen3ForCausalLM"}
FORMS = ("dense", "factored", "interpolative")
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Projection:
    """How one MLP projection is stored.

    form: "dense" keeps `weight` [out, in]; "factored" has `u` [in, rank] and `v` [rank, out], y = x @ u @ v;
        "interpolative" keeps `rank` of the I intermediate neurons, the pivots, and combines them into the others with
        `c`: gate and up have `u` [H, rank], `c` [rank, I - rank] (pivots z = x @ u, the others z @ c), down has
        `c` [I - rank, rank], `v` [rank, H] (y = (pivots of x + others of x @ c) @ v).
    rank: 0 when dense.
    pivots: runs [start, stop) of the intermediate dimension, ascending, `rank` neurons in all; interpolative only.
    """

    form: str
    rank: int = 0
    pivots: Ranges = ()

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise CheckpointError(f"projection form {self.form!r} is unknown; this version reads {', '.join(FORMS)}")
        if (self.form == "dense") != (self.rank == 0) or self.rank < 0:
            raise CheckpointError(f"form {self.form!r} with rank {self.rank}: dense has rank 0, other forms rank >= 1")
        edges = [edge for run in self.pivots for edge in run]
        covered = sum(stop - start for start, stop in self.pivots)
        if sorted(set(edges)) != edges or covered != (self.rank if self.form == "interpolative" else 0):
            raise CheckpointError(
                f"form {self.form!r} of rank {self.rank} has pivots {list(self.pivots)}; expected ascending, separate "
                "runs with as many neurons as the rank when interpolative, none otherwise"
            )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of this projection; a dense one has no rank, only an interpolative one has pivots."""
        if self.form == "dense":
            return {"form": self.form}
        entry: dict[str, Any] = {"form": self.form, "rank": self.rank}
        return entry if self.form == "factored" else {**entry, "pivots": [list(run) for run in self.pivots]}


Layers = dict[int, dict[str, Projection]]


def layers_to_json(layers: Mapping[int, Mapping[str, Projection]]) -> dict[str, Any]:
    """The `layers` object of svd_config."""
    return {str(i): {name: p.to_dict() for name, p in projections.items()} for i, projections in sorted(layers.items())}


def parse_layers(svd_config: Mapping[str, Any], num_layers: int) -> Layers:
    """Read and check `svd_config["layers"]`.

    Args:
        svd_config: the object from config.json.
        num_layers: `num_hidden_layers` of the same config.
    Raises:
        CheckpointError: a newer format_version, a missing or extra layer or projection, an unknown form.
    """
    version = svd_config.get("format_version")
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise CheckpointError(
            f"svd_config has format_version {version!r}; this version reads 1 to {FORMAT_VERSION}. "
            "Upgrade nxdi-svd-plugin"
        )
    found = svd_config.get("layers")
    expected = {str(i) for i in range(num_layers)}
    if not isinstance(found, Mapping) or set(found) != expected:
        keys = sorted(found) if isinstance(found, Mapping) else found
        raise CheckpointError(f"svd_config has layers {keys}; config.json says num_hidden_layers = {num_layers}")
    return {int(i): _parse_layer(i, layer) for i, layer in found.items()}


def _parse_layer(index: str, layer: Any) -> dict[str, Projection]:
    if not isinstance(layer, Mapping) or set(layer) != set(PROJECTIONS):
        raise CheckpointError(
            f"svd_config layer {index} is {layer!r}; expected the projections {', '.join(PROJECTIONS)}"
        )
    return {name: _parse_projection(index, name, layer[name]) for name in PROJECTIONS}


def _parse_projection(index: str, name: str, entry: Any) -> Projection:
    if (
        not isinstance(entry, Mapping)
        or not set(entry) <= {"form", "rank", "pivots"}
        or not isinstance(entry.get("rank", 0), int)
        or not _are_runs(entry.get("pivots", []))
    ):
        raise CheckpointError(f"svd_config layer {index} {name} is {entry!r}; expected {{'form': ..., 'rank': ...}}")
    runs = tuple((int(start), int(stop)) for start, stop in entry.get("pivots", []))
    return Projection(str(entry.get("form")), entry.get("rank", 0), runs)


def _are_runs(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(run, (list, tuple)) and len(run) == 2 and all(isinstance(edge, int) and edge >= 0 for edge in run)
        for run in value
    )


def tensor_shapes(projection: Projection, fan_in: int, fan_out: int) -> dict[str, tuple[int, int]]:
    """Names (after `mlp.<projection>.`) and shapes of the tensors that store a projection of y = x @ W, W [in, out].

    The pivots of an interpolative projection lie on the larger side: out for gate and up, in for down.
    Raises:
        CheckpointError: a pivot beyond the intermediate dimension.
    """
    rank = projection.rank
    if projection.form == "dense":
        return {"weight": (fan_out, fan_in)}
    if projection.form == "factored":
        return {"u": (fan_in, rank), "v": (rank, fan_out)}
    if projection.pivots[-1][1] > max(fan_in, fan_out):
        raise CheckpointError(f"pivots {list(projection.pivots)} reach beyond {max(fan_in, fan_out)} neurons")
    if pivots_on_output(fan_in, fan_out):
        return {"u": (fan_in, rank), "c": (rank, fan_out - rank)}
    return {"c": (fan_in - rank, rank), "v": (rank, fan_out)}


def pivots_on_output(fan_in: int, fan_out: int) -> bool:
    """Whether an interpolative projection of these sizes keeps columns (gate, up) or rows (down): I > H."""
    return fan_out > fan_in


def projection_dims(name: str, hidden: int, intermediate: int) -> tuple[int, int]:
    """(in, out) of a projection: gate and up map hidden to intermediate, down maps back."""
    return (intermediate, hidden) if name == "down_proj" else (hidden, intermediate)
