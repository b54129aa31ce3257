"""What report.json says about one projection: how it is stored, what was measured on it, and how that reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.report.json_object import expect, field_values, to_json
from nxdi_svd_plugin.stored.projection import DENSE_FORM, PROJECTIONS, LowRank, Projection, parse_projection

FORM_KEYS = ("form", "rank", "pivots")
ADDED = "the output error of down adds the squared errors of its groups, as if they were uncorrelated"
"""What is to be known of `relative_error` where a model has several groups; docs/accuracy.md, "Errors"."""


@dataclass(frozen=True)
class MatrixRecord:
    """One projection; a number that was not measured is None and not in the JSON object.

    layer, name: which one. width: intermediate neurons that its layer keeps. projection: how it is stored.
    relative_error: |y - x W| / |x W| on the calibration tokens; of down in several groups, see ADDED. discarded,
    energy: of the objective, beyond the rank and in all. relative_ridge: added to the covariance, in units of its mean
    diagonal; None too where that is zero.
    predicted_loss: nats per token that the two-sided objective expects. drop_loss: of down, those that dropping neurons
    of the layer is expected to cost. bf16_error: relative output error of the stored
    factors in bfloat16 against the same factors in float32. fit_before, fit_after: relative output error behind the
    compressed layers against what the refit aims at (compress/factor/refit.py), before it and after; relative_error
    and the losses are of the factors that it began with. growth: largest coefficient of an interpolative far matrix;
    limited: how far the limit of that has changed the matrix, 0 as a rule. seconds: of factoring. weight_rank: the
    largest rank of all groups, each alike, that zeros or repeated neurons of the dense weight leave, where that is less
    than full.
    Raises:
        CheckpointError: no projection of this name, a negative layer.
    """

    layer: int
    name: str
    width: int
    projection: Projection
    relative_error: float | None = None
    discarded: float | None = None
    energy: float | None = None
    relative_ridge: float | None = None
    predicted_loss: float | None = None
    drop_loss: float | None = None
    bf16_error: float | None = None
    fit_before: float | None = None
    fit_after: float | None = None
    growth: float | None = None
    limited: float | None = None
    seconds: float | None = None
    weight_rank: int | None = None

    def __post_init__(self) -> None:
        if self.name not in PROJECTIONS or self.layer < 0:
            raise CheckpointError(f"{self.layer}.{self.name} is no projection; expected {', '.join(PROJECTIONS)}")

    @property
    def rank(self) -> int | None:
        """The rank; None for a projection that stays dense."""
        return self.projection.rank if isinstance(self.projection, LowRank) else None

    def cell(self) -> str:
        """The cell of a table: rank, and in brackets the output error and what bfloat16 adds, if measured.

        Of a dense one with zeros or repeated neurons, the rank that these leave.
        """
        if self.rank is None:
            return DENSE_FORM if self.weight_rank is None else f"{DENSE_FORM} (rank {self.weight_rank})"
        errors = [percent(error) for error in (self.relative_error, self.bf16_error) if error is not None]
        return f"{self.rank} ({' + '.join(errors)})" if errors else str(self.rank)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; the groups are the whole model's."""
        values = to_json(self)
        where = {"layer": values.pop("layer"), "projection": values.pop("name"), "width": values.pop("width")}
        del values["projection"]
        return {**where, **self.projection.to_dict(), **values}

    @classmethod
    def from_dict(cls, found: Any, groups: int = 1, where: str = "matrices") -> MatrixRecord:
        """A record out of its JSON object.

        Raises:
            CheckpointError: a missing or unknown key, a value of another type, an unknown form.
        """
        entry = dict(expect(dict, found, where))
        form = {key: entry.pop(key) for key in FORM_KEYS if key in entry}
        if "projection" not in entry:
            raise CheckpointError(f"{where} has no key 'projection'")
        values = field_values(cls, {"name": entry.pop("projection"), **entry}, where, without=("projection",))
        try:
            return cls(**values, projection=parse_projection(form, groups))
        except CheckpointError as error:
            raise CheckpointError(f"{where}: {error}") from error


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent, "" for None."""
    return "" if share is None else f"{100 * share:.{digits}f} %"
