"""`neuronxcc.nki`: jit, simulate_kernel and baremetal run the kernel here; benchmark and profile need a device and
say so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nxdi_svd_plugin.simulator.machine import kernel as _kernel
from nxdi_svd_plugin.simulator.place import fail, missing_api

_MODES = ("auto", "simulation", "baremetal", "torchxla", "jax", "trace")
_OPTIONS = ("platform_target", "experimental_flags", "additional_compile_opt", "debug_kernel", "show_compiler_tb")


def jit(func: Callable[..., Any] | None = None, mode: str = "auto", **options: Any) -> Any:
    """Decorator for kernels; every mode that makes sense on a CPU simulates."""
    if mode not in _MODES:
        fail(f"nki.jit(mode={mode!r}) needs a device; the simulator takes {', '.join(_MODES)}")
    for name in options:
        if name not in _OPTIONS:
            fail(f"nki.jit has no option {name!r}")
    if func is None:
        return lambda function: jit(function, mode, **options)
    target = str(options.get("platform_target", "trn1"))
    return _kernel.Kernel(getattr(func, "__wrapped__", func), target, strict=not _kernel.LENIENT_DEPTH[0])


def simulate_kernel(kernel: Any, *args: Any, **kwargs: Any) -> Any:
    """The kernel's numpy outputs."""
    if not isinstance(kernel, _kernel.Kernel):
        kernel = jit(kernel)
    return kernel(*args, **kwargs)


def baremetal(kernel: Any = None, **options: Any) -> Any:
    """Numpy in and out; simulated here, artifacts are not written."""
    if kernel is None:
        return lambda function: baremetal(function, **options)
    return kernel if isinstance(kernel, _kernel.Kernel) else jit(kernel)


def benchmark(kernel: Any = None, **options: Any) -> Any:
    """Latencies come from a device only."""
    fail("nki.benchmark measures on a device; here, simulate() models a latency (Trace.modelled_latency_us)")


def profile(func: Any = None, **options: Any) -> Any:
    """Profiles come from a device only."""
    fail("nki.profile captures on a device; here, simulate() counts HBM bytes, spills and cycles")


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    if name in ("language", "isa", "typing", "compiler"):
        import importlib

        return importlib.import_module(f"nxdi_svd_plugin.simulator.{name}")
    missing_api("nki", name)
