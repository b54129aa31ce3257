"""peft's LoRA on low-rank projections: `target_modules` finds them, "all-linear" too, as if they were nn.Linear.

An adapter stands beside the whole projection, y = x near far + scaling * x A^T B^T; the factors stay. peft asks for the
class of such an adapter in each LoraConfig (peft docs, developer_guides/custom_models); `register` gives it to every
config that is applied to a model with low-rank projections, once peft is imported.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

from nxdi_svd_plugin.errors import SvdError
from nxdi_svd_plugin.import_hook import after_import

LORA = "peft.tuners.lora.model"
ALL_LINEAR = "all-linear"


def register_with_peft() -> None:
    """Act now if peft's LoRA is imported, else as soon as it is."""
    after_import(LORA, register)


def register(lora: ModuleType) -> None:
    """Let peft.tuners.lora.model.LoraModel complete each config before it looks for modules. Called once."""
    original = lora.LoraModel.inject_adapter

    def inject_adapter(self: Any, model: Any, adapter_name: str, *args: Any, **options: Any) -> Any:
        """As in peft."""
        complete(self.peft_config[adapter_name], model)
        return original(self, model, adapter_name, *args, **options)

    lora.LoraModel.inject_adapter = inject_adapter


def complete(config: Any, model: Any) -> None:
    """Tell a LoraConfig of the low-rank projections of a model; nothing where the model has none."""
    from nxdi_svd_plugin.modeling.low_rank_linear import LowRankLinear

    if any(isinstance(module, LowRankLinear) for module in model.modules()):
        config._register_custom_module({LowRankLinear: adapter_class()})
        if str(config.target_modules).lower() == ALL_LINEAR:
            config.target_modules = linear_names(model)


def linear_names(model: Any) -> set[str]:
    """The names of all linear and low-rank modules but the output head, also of those that have an adapter already."""
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch import nn

    from nxdi_svd_plugin.modeling.low_rank_linear import LowRankLinear

    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, BaseTunerLayer))
    head = model.get_output_embeddings()
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, LowRankLinear, Linear)) and module is not head and not name.startswith(inside)
    }


@cache
def adapter_class() -> type:
    """peft's LoRA layer for a low-rank projection."""
    from peft.tuners.lora import Linear

    class LowRankLora(Linear):
        """LoRA beside a projection that has no weight of its own to merge into."""

        def _get_in_out_features(self, module: Any) -> tuple[int, int]:
            """What peft would warn that it does not know."""
            return module.in_features, module.out_features

        def update_layer(self, *args: Any, **options: Any) -> None:
            """As in peft.

            Raises:
                SvdError: a kind of LoRA that begins from the weight, of which there are only the factors.
            """
            try:
                super().update_layer(*args, **options)
            except AttributeError as error:
                if "no attribute 'weight'" not in str(error):
                    raise
                raise SvdError(
                    "this kind of LoRA (use_dora or init_lora_weights) begins from the weight, and a low-rank "
                    "projection has only its factors; use plain LoRA, or name attention projections alone in "
                    "target_modules"
                ) from error

        def merge(self, *_args: Any, **_options: Any) -> None:
            """Not possible: the sum of the factors' product and an adapter has a larger rank than is stored.

            Raises:
                SvdError: always.
            """
            raise SvdError(
                "an adapter on a low-rank projection cannot be merged without a larger rank; save the adapter, or use "
                "`nxdi-svd recover`, which trains and merges inside the factors"
            )

    return LowRankLora
