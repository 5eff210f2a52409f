"""Running a function right after a module has been imported, without importing it.

Knows neither torch nor what the functions do.
"""

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class AfterImport:
    """A meta-path finder that watches for named modules and otherwise finds nothing."""

    def __init__(self) -> None:
        self._waiting: dict[str, Callable[[ModuleType], None]] = {}
        self._around: dict[str, Callable[[], None]] = {}

    def install(self) -> None:
        """Watch every import from now on."""
        sys.meta_path.insert(0, self)

    def when(self, name: str, act: Callable[[ModuleType], None], before: Callable[[], None] = lambda: None) -> None:
        """Call ``act`` with the module once its import has finished, now if it has; ``before`` runs ahead of it."""
        module = sys.modules.get(name)
        if module is not None:
            act(module)
            return
        self._waiting[name], self._around[name] = act, before

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find, with our function behind the loader's last step; None for all other names."""
        act = self._waiting.pop(name, None)
        if act is None:
            return None
        spec = importlib.util.find_spec(name)
        loader: Any = spec.loader if spec else None
        if not hasattr(loader, "exec_module"):
            return None
        execute, before = loader.exec_module, self._around.pop(name)

        def execute_then_act(module: ModuleType) -> None:
            before()
            execute(module)
            act(module)

        loader.exec_module = execute_then_act  # on this one instance; the loader stays what it is
        return spec
