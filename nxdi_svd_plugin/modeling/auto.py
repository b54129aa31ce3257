"""Registers the compressed models with transformers' Auto classes, and imports transformers no sooner than its user."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

AUTO = "transformers.models.auto.configuration_auto"


def register() -> None:
    """AutoConfig and AutoModelForCausalLM know svd_llama and svd_qwen3. May be called again."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from nxdi_svd_plugin.modeling.models import SvdLlamaForCausalLM
    from nxdi_svd_plugin.modeling.svd_qwen3 import SvdQwen3ForCausalLM

    for model in (SvdLlamaForCausalLM, SvdQwen3ForCausalLM):
        AutoConfig.register(model.config_class.model_type, model.config_class, exist_ok=True)
        AutoModelForCausalLM.register(model.config_class, model, exist_ok=True)


def register_with_transformers() -> None:
    """Register now if the Auto classes are imported, else as soon as they are."""
    if AUTO in sys.modules:
        register()
    elif not any(isinstance(finder, Registrar) for finder in sys.meta_path):
        sys.meta_path.insert(0, Registrar())


class Registrar(MetaPathFinder):
    """Watches the imports of transformers' modules, and registers after the one that brings in the Auto classes.

    transformers' modules import each other in circles (modeling_utils, generation, models.auto, models.llama), so the
    classes can be subclassed only when the outermost import is done: `depth` counts the bodies that are running.
    """

    depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find for a module of transformers, with its loader watched; None for all else."""
        if fullname.partition(".")[0] != "transformers":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            self.watch(spec.loader)
        return spec

    def watch(self, loader: Loader) -> None:
        """Count the module's body while it runs; register after the outermost one."""
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
                if self.depth == 1 and AUTO in sys.modules and self in sys.meta_path:
                    sys.meta_path.remove(self)
                    register()
            finally:
                self.depth -= 1

        loader.exec_module = exec_module  # type: ignore[method-assign]
