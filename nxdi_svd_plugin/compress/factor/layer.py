"""One layer from its decomposition to the tensors that are stored.

The projections of a layer share one order of the intermediate neurons, so they are made together, and a projection that
stays dense in a layer whose form moved the neurons is stored in that order too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from nxdi_svd_plugin.compress.factor.spectra import Decomposition, Measured, truncated
from nxdi_svd_plugin.compress.forms import Form, Truncation
from nxdi_svd_plugin.stored.layers import Mlp, mlp_of
from nxdi_svd_plugin.stored.projection import READS, Dense, LowRank


@dataclass(frozen=True)
class LayerFactors:
    """The stored form of a layer.

    mlp: as planned, with the pivots that were found. tensors: by "<projection>.<name>"; float64, or a dense weight that
    was moved. order: stored intermediate neuron -> source neuron, or None when the source's order was kept.
    measured: the numbers of the report, by projection.
    """

    mlp: Mlp
    tensors: dict[str, Tensor]
    order: Tensor | None
    measured: dict[str, Measured]


def factor_layer(
    weights: Callable[[str], Tensor],
    decompositions: Callable[[str], Iterable[Decomposition]],
    planned: Mlp,
    form: Form,
    block: int,
) -> LayerFactors:
    """Factors of every projection that is not dense.

    Args:
        weights: projection name to torch weight [out, in].
        decompositions: projection name to those of its groups; asked once for each that is not dense.
        planned: forms and ranks.
    Raises:
        SvdError: a weight has a smaller rank than planned.
    """
    ranks = {name: p.rank // p.groups for name, p in planned.items() if isinstance(p, LowRank)}
    if not ranks:
        return LayerFactors(planned, {}, None, {})
    measured: dict[str, Measured] = {}

    def cut() -> Iterator[tuple[str, list[Truncation]]]:
        for name, rank in ranks.items():
            groups, measured[name] = truncated(decompositions(name), rank)
            yield name, groups
            del groups  # before the next projection's are made

    made = form.store(cut(), planned.width // planned.groups, block)
    tensors = {
        f"{name}.{key}": tensor
        for name, (near, far) in made.factors.items()
        for key, tensor in made.projections[name].to_disk(READS[name], near, far).items()
    }
    if made.order is not None:
        for name in moved(planned):
            weight, order = weights(name), made.order
            tensors[f"{name}.weight"] = weight.index_select(READS[name].weight_axis, order.to(weight.device))
    mlp = mlp_of(planned.width, {**dict(planned.items()), **made.projections})
    numbers = {name: {**measured[name], **made.measured[name]} for name in ranks}
    return LayerFactors(mlp, tensors, made.order, numbers)


def moved(mlp: Mlp) -> list[str]:
    """The dense projections of a layer that has pivots, whose neurons are stored in another order than the source's."""
    if not any(isinstance(p, LowRank) and p.pivots for _, p in mlp.items()):
        return []
    return [name for name, p in mlp.items() if isinstance(p, Dense)]
