"""SVD-compressed MLPs with fused NKI kernels for Llama and Qwen3 on AWS NeuronX Distributed Inference.

    import nxdi_svd_plugin
    report = nxdi_svd_plugin.compress(model_dir, output_dir, recipe)
    model = nxdi_svd_plugin.load_pretrained(output_dir)

Importing the package imports neither torch nor transformers. After it, AutoModelForCausalLM.from_pretrained(output_dir)
works.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from nxdi_svd_plugin.modeling.adapters import register_with_peft
from nxdi_svd_plugin.modeling.auto import register_with_transformers
from nxdi_svd_plugin.nxdi import guard
from nxdi_svd_plugin.version import __version__

if TYPE_CHECKING:
    from nxdi_svd_plugin.compress.run.run import compress
    from nxdi_svd_plugin.modeling.auto import register
    from nxdi_svd_plugin.modeling.load import load_pretrained

__all__ = ["__version__", "compress", "load_pretrained", "register"]

_WHERE = {
    "compress": "nxdi_svd_plugin.compress.run.run",
    "load_pretrained": "nxdi_svd_plugin.modeling.load",
    "register": "nxdi_svd_plugin.modeling.auto",
}

register_with_transformers()
register_with_peft()
guard.install()  # NxDI's own classes must not run a compressed directory, see nxdi/guard.py


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
