"""Registers the compressed models with transformers' Auto classes, and imports transformers no sooner than its user."""

from __future__ import annotations

from typing import Any

from nxdi_svd_plugin.errors import CheckpointError
from nxdi_svd_plugin.import_hook import after_import

AUTO = "transformers.models.auto.configuration_auto"


OTHER_TASKS = (
    "AutoModel",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
)
"""The Auto classes that have a Llama or a Qwen3 and no compressed one."""


class CausalOnly:
    """In the place of a model class that does not exist: says which one does."""

    config_class: type

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Raises CheckpointError."""
        raise CheckpointError(
            "a compressed model is a causal language model: load it with AutoModelForCausalLM; its `.model` gives "
            "hidden states, and there is no compressed model with another head"
        )

    from_config = _from_config = from_pretrained


def register() -> None:
    """AutoConfig and AutoModelForCausalLM know svd_llama and svd_qwen3; the other Auto classes, that there is no such
    model. May be called again."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    from nxdi_svd_plugin.modeling.models import SvdLlamaForCausalLM, SvdQwen3ForCausalLM

    for model in (SvdLlamaForCausalLM, SvdQwen3ForCausalLM):
        AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
        AutoModelForCausalLM.register(model.config_class, model, exist_ok=True)
        for name in OTHER_TASKS:
            refusal = type(f"{model.__name__}Only", (CausalOnly,), {"config_class": model.config_class})
            getattr(transformers, name).register(model.config_class, refusal, exist_ok=True)


def register_with_transformers() -> None:
    """Register now if the Auto classes are imported, else as soon as they are."""
    after_import(AUTO, lambda _: register())
