"""Stand-ins for the binary-only Neuron packages, so that the Python sources of NxD and NxDI import on a CPU.

`install()` adds an import finder for every package of ROOTS that is not installed: any attribute of a stub module is a
value that can be called, indexed, subclassed or used as a decorator. A package that is installed is left alone, so on a
host with the Neuron SDK nothing is stubbed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types

NEURON = ("torch_xla", "torch_neuronx", "libneuronxla", "neuronxcc", "nki", "nkilib")
UNUSED = ("torchvision", "boto3", "botocore", "s3transfer", "tenacity", "mypy_boto3_s3", "tiktoken", "whisper", "scipy")
ROOTS = NEURON + UNUSED  # UNUSED: NxD and NxDI import them (images, S3, audio), the tests need nothing of them


class AnyValue:
    """A value that accepts every operation; called with one callable it acts as a decorator and returns it."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, key):
        if key.startswith("__"):
            raise AttributeError(key)
        return AnyValue(f"{self._name}.{key}")

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and not kwargs and callable(args[0]) else AnyValue(f"{self._name}()")

    def __getitem__(self, key):
        return self

    def __mro_entries__(self, bases):
        return (object,)

    def __iter__(self):
        return iter(())

    def __or__(self, other):
        return other

    __ror__ = __or__


class StubModule(types.ModuleType):
    """A package whose every attribute is an AnyValue."""

    __path__: list[str] = []

    def __getattr__(self, key):
        if key.startswith("__"):
            raise AttributeError(key)
        value = AnyValue(f"{self.__name__}.{key}")
        setattr(self, key, value)
        return value


class StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds any module below the given top-level packages."""

    def __init__(self, roots):
        self.roots = roots

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.roots:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return StubModule(spec.name)

    def exec_module(self, module):
        pass


def install() -> tuple[str, ...]:
    """Stub the packages of ROOTS that are absent; returns their names."""
    missing = tuple(root for root in ROOTS if importlib.util.find_spec(root) is None)
    if missing:
        sys.meta_path.insert(0, StubFinder(missing))
    if "torch_neuronx" in missing:
        _fill_torch_neuronx()
    return missing


def _fill_torch_neuronx() -> None:
    """The few values that NxD and NxDI compute with at import: platform, version, torch.classes.neuron."""
    import torch
    import torch_neuronx
    import torch_neuronx.utils
    import torch_neuronx.utils.utils

    class Namespace:
        def __getattr__(self, key):
            return type(key, (), {})

    torch_neuronx.__version__ = "2.0"
    for module in (torch_neuronx.utils, torch_neuronx.utils.utils):
        module.get_platform_target = lambda: "trn1"
    torch.classes.__dict__["neuron"] = Namespace()
