"""Acting on a module as soon as it is imported, without importing it: registration must not cost a process NxDI."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Action = Callable[[ModuleType], None]


def after_import(name: str, action: Action) -> None:
    """Call action(module) once: now if `name` is imported already, else after the import that brings it in.

    A module that is waited for keeps its first action.
    """
    module = sys.modules.get(name)
    if module is not None and not getattr(module.__spec__, "_initializing", False):
        action(module)
    else:
        _watcher(name.partition(".")[0]).actions.setdefault(name, action)


def _watcher(package: str) -> Watcher:
    """The watcher of a top-level package, a new one where there is none."""
    for finder in sys.meta_path:
        if isinstance(finder, Watcher) and finder.package == package:
            return finder
    watcher = Watcher(package)
    sys.meta_path.insert(0, watcher)
    return watcher


class Watcher(MetaPathFinder):
    """Finds the modules of one package through the other finders, and acts after the import that brings in its targets.

    Modules of a package import each other in circles (transformers' modeling_utils, generation, models.auto), so all of
    them are usable only when the outermost import is done: `depth` counts the bodies that are running.
    """

    def __init__(self, package: str) -> None:
        self.package, self.depth = package, 0
        self.actions: dict[str, Action] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find for a module of the package, with its loader watched; None for all else."""
        if fullname.partition(".")[0] != self.package:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, others), None)
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: Loader) -> None:
        """Count the module's body while it runs; act after the outermost one."""
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
                if self.depth == 1:
                    self._act()
            finally:
                self.depth -= 1

        loader.exec_module = exec_module  # type: ignore[method-assign]

    def _act(self) -> None:
        """Act on all targets that are there, also on those that an action imports; then step aside."""
        while ready := [name for name in self.actions if name in sys.modules]:
            self.actions.pop(ready[0])(sys.modules[ready[0]])
        if not self.actions and self in sys.meta_path:
            sys.meta_path.remove(self)
