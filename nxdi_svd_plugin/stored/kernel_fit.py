"""Which of a layer's projections the fused kernels run on one core, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.hardware import PARTITIONS
from nxdi_svd_plugin.stored.cells import core_runs
from nxdi_svd_plugin.stored.cores import fits, share_of, sharing
from nxdi_svd_plugin.stored.layers import Mlp, groups_of
from nxdi_svd_plugin.stored.projection import PROJECTIONS, Dense, LowRank, Projection
from nxdi_svd_plugin.stored.runs import Runs

DEGREES = (1, 2, 4, 8)
"""Tensor-parallel degrees that are tried when one is recommended."""


@dataclass(frozen=True)
class KernelFit:
    """What the kernels do in one layer on one core, the same for each group that the core has.

    pivots: of every projection that a kernel takes, in tiles of 128 neurons of the core's share of a group; () for a
        pair.
    refused: projection -> why no kernel takes it.
    misfit: those of `refused` that another block or degree would bring to the kernels: their pivots do not fit.
    """

    pivots: Mapping[str, Runs]
    refused: Mapping[str, str]
    misfit: tuple[str, ...] = ()

    @property
    def up_gate(self) -> bool:
        """Whether the kernel `up_gate` runs."""
        return {"gate_proj", "up_proj"} <= set(self.pivots)

    @property
    def down(self) -> bool:
        """Whether the kernel `down` runs."""
        return "down_proj" in self.pivots

    def describe(self) -> str:
        """Which projections have no kernel and why, or nothing."""
        alike: dict[str, list[str]] = {}
        for name, reason in self.refused.items():
            alike.setdefault(reason, []).append(name)
        return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in alike.items())


def kernel_fit(mlp: Mlp, tp: int) -> KernelFit:
    """The kernels of a layer at tensor-parallel degree `tp`.

    Pivots go in whole tiles of 128 neurons on every core; `up_gate` takes gate and up in one form. Where whole blocks
    lie does not matter, so a plan whose pivots are not chosen yet gets the same answer.

    Raises:
        SvdError: the groups do not go evenly on `tp` cores.
    """
    runs = _tiles(mlp, tp)
    refused = {name: reason for name, p in mlp.items() if (reason := _refusal(mlp, p, runs[name], tp))}
    misfit = tuple(name for name in refused if runs[name] is None)
    refused |= _together(mlp, refused)
    return KernelFit({name: runs[name] or () for name in PROJECTIONS if name not in refused}, refused, misfit)


def _tiles(mlp: Mlp, tp: int) -> dict[str, Runs | None]:
    """The pivots inside one core in tiles; None where they, or the core's share of the neurons, are not whole tiles."""
    share, cores = share_of(mlp, tp), sharing(mlp.groups, tp).cores
    try:
        found = core_runs(mlp, cores)
    except SvdError:  # the pivots do not even divide over the cores
        return {name: () if not isinstance(p, LowRank) or not p.pivots else None for name, p in mlp.items()}
    return {name: _in_tiles(runs, share) for name, runs in found.items()}


def _in_tiles(runs: Runs, share: int) -> Runs | None:
    if not runs:
        return ()
    if any(edge % PARTITIONS for edge in (share, *(edge for run in runs for edge in run))):
        return None
    return tuple((start // PARTITIONS, stop // PARTITIONS) for start, stop in runs)


def _refusal(mlp: Mlp, projection: Projection, runs: Runs | None, tp: int) -> str:
    if isinstance(projection, Dense):
        return "it is dense"
    own = -(-mlp.width // tp)
    if runs is None and own % PARTITIONS:
        dropped = (
            "" if mlp.groups == tp else f" (after dropping neurons --tp-degree {tp} --block {PARTITIONS} may do too)"
        )
        return (
            f"at tp {tp} a core has {own} neurons, not whole tiles of {PARTITIONS} as interpolative factors need; "
            f"compress with --form pair{dropped}"
        )
    if runs is None:
        return (
            f"at tp {tp} the pivots are not whole tiles of {PARTITIONS} neurons on every core; compress with "
            f"--tp-degree {tp} --block {PARTITIONS} or --form pair"
        )
    return ""


def _together(mlp: Mlp, refused: Mapping[str, str]) -> dict[str, str]:
    """Why `up_gate` does not run although one of its projections, or both, might."""
    left = [name for name in ("gate_proj", "up_proj") if name not in refused]
    if len(left) == 1:
        return {left[0]: "the kernel takes gate and up together"}
    if len(left) == 2 and mlp.gate.form != mlp.up.form:
        return dict.fromkeys(left, f"gate is {mlp.gate.form} and up {mlp.up.form}, the kernel takes one form")
    return {}


def even_degrees(layers: Mapping[int, Mlp]) -> list[int]:
    """Those of DEGREES that the groups go on evenly, and as many cores as groups."""
    groups = groups_of(layers)
    return [tp for tp in sorted({*DEGREES, groups}) if fits(groups, tp)]


def kernel_degrees(layers: Mapping[int, Mlp]) -> list[int]:
    """The `even_degrees` at which no pivots keep a projection from the kernels."""
    return [tp for tp in even_degrees(layers) if not any(kernel_fit(mlp, tp).misfit for mlp in layers.values())]
