"""Registers the compressed models with transformers' Auto classes, and imports transformers no sooner than its user."""

from __future__ import annotations

from nxdi_svd_plugin.import_hook import after_import

AUTO = "transformers.models.auto.configuration_auto"


def register() -> None:
    """AutoConfig and AutoModelForCausalLM know svd_llama and svd_qwen3. May be called again."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from nxdi_svd_plugin.modeling.models import SvdLlamaForCausalLM, SvdQwen3ForCausalLM

    for model in (SvdLlamaForCausalLM, SvdQwen3ForCausalLM):
        AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
        AutoModelForCausalLM.register(model.config_class, model, exist_ok=True)


def register_with_transformers() -> None:
    """Register now if the Auto classes are imported, else as soon as they are."""
    after_import(AUTO, lambda _: register())
