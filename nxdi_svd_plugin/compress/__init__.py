"""From a dense checkpoint to a compressed one, layer by layer.

The module is also the function: `nxdi_svd_plugin.compress(model_dir, output_dir, recipe)` is `run.run.compress`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallableModule(ModuleType):
    """Python puts a subpackage over any function of the same name in its parent, so the subpackage itself is
    callable."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`nxdi_svd_plugin.compress.run.run.compress`."""
        from nxdi_svd_plugin.compress.run.run import compress

        return compress(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
