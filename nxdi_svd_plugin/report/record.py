"""report.json: what a compression did, and what was measured on its result; written and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nxdi_svd_plugin.checkpoint.atomic import json_bytes, write_bytes
from nxdi_svd_plugin.checkpoint.names import REPORT, read_json
from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.report.cells import error_lines, layer_table
from nxdi_svd_plugin.report.json_object import expect, field_values, to_json
from nxdi_svd_plugin.report.matrix import MatrixRecord
from nxdi_svd_plugin.report.measured import Evaluation, LayerLosses, Recovery, Tasks
from nxdi_svd_plugin.report.scaling import Scaling, sums
from nxdi_svd_plugin.stored.layers import Layers, groups_of, mlp_of
from nxdi_svd_plugin.stored.projection import PROJECTIONS


@dataclass(frozen=True)
class Source:
    """The dense model; fingerprint: SHA-256 over the hashes of its config.json and weight files."""

    name: str
    model_type: str
    fingerprint: str


@dataclass(frozen=True)
class Ratio:
    """Share of the parameters that is gone: asked of the target ("mlp" or "model"), reached in both (Eq. 4)."""

    asked: float
    target: str
    mlp: float
    model: float


@dataclass(frozen=True)
class Parameters:
    """Numbers stored, before and after."""

    mlp_dense: int
    mlp: int
    model_dense: int
    model: int


@dataclass(frozen=True)
class Calibration:
    """The text by name and SHA-256, and the samples: how many, tokens in each and in all, seed of their choice."""

    text: str
    sha256: str
    samples: int
    length: int
    tokens: int
    seed: int


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds, and the peak memory of process 0 in bytes, on what."""

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int
    machine: str
    device: str
    threads: int
    processes: int


@dataclass(frozen=True)
class Report:
    """Everything that report.json says.

    matrices: one record for each projection, all of the model's. recipe: as recipe.py writes it. files: SHA-256 of
    every weight file. scaling: how predicted losses were brought to one scale, where they were. evaluation, tasks,
    layer_losses: what `nxdi-svd evaluate --record` measured. recovery: what `nxdi-svd recover` did.
    Raises:
        CheckpointError: a layer without one of its projections, layers that no model can have.
    """

    source: Source
    ratio: Ratio
    parameters: Parameters
    matrices: tuple[MatrixRecord, ...]
    calibration: Calibration
    recipe: dict[str, Any]
    versions: dict[str, str]
    cost: Cost
    files: dict[str, str]
    scaling: Scaling | None = None
    evaluation: Evaluation | None = None
    tasks: Tasks | None = None
    layer_losses: LayerLosses | None = None
    recovery: Recovery | None = None

    def __post_init__(self) -> None:
        groups_of(self.layers)

    @property
    def layers(self) -> Layers:
        """What every layer stores."""
        found: dict[int, dict[str, MatrixRecord]] = {}
        for record in self.matrices:
            found.setdefault(record.layer, {})[record.name] = record
        if not found or set(found) != set(range(len(found))):
            raise CheckpointError(f"matrices are of the layers {sorted(found)}; expected 0 and on without a gap")
        for layer, records in found.items():
            widths = {record.width for record in records.values()}
            if set(records) != set(PROJECTIONS) or len(widths) > 1:
                raise CheckpointError(
                    f"matrices of layer {layer} are {', '.join(records)} of width {sorted(widths)}; expected "
                    f"{', '.join(PROJECTIONS)} of one width"
                )
        return {
            layer: mlp_of(records[PROJECTIONS[0]].width, {name: record.projection for name, record in records.items()})
            for layer, records in found.items()
        }

    @property
    def core(self) -> str:
        """What one core holds of the MLPs where there are as many cores as groups: numbers, beside dense ones."""
        groups, count = groups_of(self.layers), self.parameters
        stored, dense = count.mlp / groups / 1e6, count.mlp_dense / groups / 1e6
        return f"{stored:.1f} M numbers at tp_degree {groups}, dense {dense:.1f} M"

    @property
    def trained(self) -> bool:
        """Whether the factors were trained after the compression."""
        return self.recovery is not None and not self.recovery.kept_input

    @property
    def refitted(self) -> bool:
        """Whether factors were fitted again after their errors and losses were predicted."""
        return any(record.fit_after is not None for record in self.matrices)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; `groups` are those of every low-rank projection."""
        found = to_json(self)
        found["matrices"] = [record.to_dict() for record in self.matrices]
        return {"groups": groups_of(self.layers), **found}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Report:
        """A report out of its JSON object.

        Raises:
            CheckpointError: a missing or unknown key, a value of another type, an unknown form; names the key.
        """
        entry = dict(found)
        groups, matrices = entry.pop("groups", None), expect(list, entry.pop("matrices", None), "matrices")
        if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
            raise CheckpointError(f"groups is {groups!r}; expected a whole number of at least 1")
        records = (MatrixRecord.from_dict(m, groups, f"matrices[{i}]") for i, m in enumerate(matrices))
        return cls(**field_values(cls, entry, "", without=("matrices",)), matrices=tuple(records))

    @classmethod
    def read(cls, directory: Path) -> Report:
        """The report of a compressed directory.

        Raises:
            CheckpointError: none there, or one that does not hold what it should; names the file and the key.
        """
        path = directory / REPORT
        try:
            return cls.from_dict(read_json(path))
        except FileNotFoundError as error:
            raise CheckpointError(f"{directory} has no {REPORT}; only `nxdi-svd compress` writes it") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); restore it or compress again") from error
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}; restore it or compress again with this version") from error

    def to_bytes(self) -> bytes:
        """The content of report.json."""
        return json_bytes(self.to_dict())

    def write(self, directory: Path) -> None:
        """Write report.json atomically."""
        write_bytes(directory / REPORT, self.to_bytes())

    def to_text(self) -> str:
        """Ranks and output errors of each layer, and the totals."""
        ratio, cost = self.ratio, self.cost
        return "\n".join(
            [
                layer_table(self.matrices),
                *error_lines(self.matrices),
                *([sums(self.scaling, self.scaling.losses(self.matrices))] if self.scaling else []),
                f"ratio asked {ratio.asked:.4f} of the {ratio.target}; reached {ratio.mlp:.4f} of the MLP, "
                f"{ratio.model:.4f} of the model",
                f"MLP weights of one core: {self.core}",
                f"{cost.wall_seconds:.1f} s ({cost.cpu_seconds:.1f} CPU s), "
                f"peak memory {cost.peak_bytes / 2**30:.2f} GiB",
            ]
        )


def recorded(directory: Path) -> tuple[dict[str, str], Layers]:
    """SHA-256 of every weight file, and the stored layers, as report.json has them.

    Raises:
        CheckpointError: as `Report.read`.
    """
    report = Report.read(directory)
    return report.files, report.layers
