"""from_pretrained that raises where transformers only warns."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from nxdi_svd_plugin.errors import CheckpointError


class StrictLoading:
    """Mixin of the compressed models: from_pretrained, and so AutoModelForCausalLM, refuses an incomplete checkpoint.

    transformers draws a missing weight at random and drops an unexpected one with a warning; a factored layer would be
    left with whatever the memory held.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers.

        Raises:
            CheckpointError: a tensor is missing, unexpected or has another shape than config.json says.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        options = {**kwargs, "output_loading_info": True, "ignore_mismatched_sizes": True}  # reported, then raised here
        model, info = super().from_pretrained(*args, **options)  # type: ignore[misc]
        check_loading_info(info)
        return (model, info) if wants_info else model


def check_loading_info(info: dict[str, Collection[Any]]) -> None:
    """Raise if transformers' loading info names a missing, unexpected or mismatched tensor.

    Raises:
        CheckpointError: with the first names of each kind.
    """
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    faults = [f"{kind.removesuffix('_keys')}: {some(info[kind])}" for kind in kinds if info.get(kind)]
    if faults:
        raise CheckpointError(
            f"the weights do not fit config.json; {'; '.join(faults)}. Run `nxdi-svd verify` on the directory, "
            "and compress or copy it again"
        )


def some(names: Collection[Any]) -> str:
    """The first three names, and how many there are."""
    first = ", ".join(sorted(str(name) for name in names)[:3])
    return first if len(names) <= 3 else f"{first}, ... ({len(names)} in all)"
