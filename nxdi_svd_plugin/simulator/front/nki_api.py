"""`neuronxcc.nki`: jit, simulate_kernel and baremetal run the kernel here; benchmark and profile need a device."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from nxdi_svd_plugin.simulator.front import compiler, isa, language, typing
from nxdi_svd_plugin.simulator.front.kernel import Kernel
from nxdi_svd_plugin.simulator.place import fail, missing_api

_MODES = ("auto", "simulation", "baremetal", "torchxla", "jax", "trace")
_OPTIONS = ("platform_target", "experimental_flags", "additional_compile_opt", "debug_kernel", "show_compiler_tb")


class Nki(ModuleType):
    """The module `nki`; `strict` is how the kernels that its decorators make are run."""

    language, isa, typing, compiler = language, isa, typing, compiler
    tensor = typing.tensor

    def __init__(self, strict: bool) -> None:
        super().__init__("neuronxcc.nki", __doc__)
        self.strict = strict

    def jit(self, func: Callable[..., Any] | None = None, mode: str = "auto", **options: Any) -> Any:
        """Decorator for kernels; every mode that makes sense on a CPU simulates."""
        if mode not in _MODES:
            fail(f"nki.jit(mode={mode!r}) needs a device; the simulator takes {', '.join(_MODES)}")
        for name in options:
            if name not in _OPTIONS:
                fail(f"nki.jit has no option {name!r}")
        if func is None:
            return lambda function: self.jit(function, mode, **options)
        target = str(options.get("platform_target", "trn1"))
        return Kernel(getattr(func, "__wrapped__", func), target, strict=self.strict)

    def trace(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Decorator for functions that kernels call: they are traced inline, as every function is."""
        return func

    def simulate_kernel(self, kernel: Any, *args: Any, **kwargs: Any) -> Any:
        """The kernel's numpy outputs."""
        if not isinstance(kernel, Kernel):
            kernel = self.jit(kernel)
        return kernel(*args, **kwargs)

    def baremetal(self, kernel: Any = None, **options: Any) -> Any:
        """Numpy in and out; simulated here, artifacts are not written."""
        if kernel is None:
            return lambda function: self.baremetal(function, **options)
        return kernel if isinstance(kernel, Kernel) else self.jit(kernel)

    def benchmark(self, kernel: Any = None, **options: Any) -> Any:
        """A kernel that says, when it is called, that latencies come from a device only."""
        what = "nki.benchmark measures on a device; here, simulate() models a latency (Trace.modelled_latency_us)"
        return _DeviceOnly(what) if kernel is not None else lambda function: _DeviceOnly(what)

    def profile(self, func: Any = None, **options: Any) -> Any:
        """A kernel that says, when it is called, that profiles come from a device only."""
        what = "nki.profile captures on a device; here, simulate() counts HBM bytes, spills and cycles"
        return _DeviceOnly(what) if func is not None else lambda function: _DeviceOnly(what)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        missing_api("nki", name)


class _DeviceOnly:
    """What a decorator gives that measures: modules that use it can be imported, and only the call is refused."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fail(self.what)

    def __getitem__(self, grid: Any) -> Any:
        return self


nki = Nki(strict=True)
"""For kernels that keep Trn1's limits: this package's own."""
lenient_nki = Nki(strict=False)
"""For other people's kernels, which may spill."""
