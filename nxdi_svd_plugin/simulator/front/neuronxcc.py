"""`as_neuronxcc()`: other people's kernels import `neuronxcc.nki` and get the simulator."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from nxdi_svd_plugin.simulator.front import compiler, enums, isa, language, language_constants, typing
from nxdi_svd_plugin.simulator.front.nki_api import lenient_nki


@contextmanager
def as_neuronxcc() -> Iterator[None]:
    """Within the context `import neuronxcc.nki` (and `.language .isa .typing .compiler`) is the simulator.

    Kernels decorated there run leniently for as long as they live: SBUF overflow is spilled and counted instead of
    refused, and unwritten memory may be computed with as long as nothing that depends on it is stored. A real
    `neuronxcc` is hidden and comes back afterwards.
    """
    package = ModuleType("neuronxcc")
    package.nki = lenient_nki  # type: ignore[attr-defined]
    package.__path__ = []
    mine = {
        "neuronxcc": package,
        "neuronxcc.nki": lenient_nki,
        "neuronxcc.nki.language": language,
        "neuronxcc.nki.isa": isa,
        "neuronxcc.nki.isa.constants": enums,
        "neuronxcc.nki.language.constants": language_constants,
        "neuronxcc.nki.typing": typing,
        "neuronxcc.nki.compiler": compiler,
    }
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "neuronxcc"}
    for name in hidden:
        del sys.modules[name]
    sys.modules.update(mine)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "neuronxcc"]:
            del sys.modules[name]
        sys.modules.update(hidden)
