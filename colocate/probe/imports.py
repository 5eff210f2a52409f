# SPDX-License-Identifier: Apache-2.0
"""Running a function right after a module has been imported, without importing it.

Knows neither torch nor what the functions do.
"""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Callable, Sequence  # noqa: UP035  this module runs on Python 3.8


class AfterImport:
    """A meta-path finder that watches for named modules and otherwise finds nothing."""

    def __init__(self) -> None:
        self._waiting: dict[str, Callable[[ModuleType], None]] = {}
        self._around: dict[str, Callable[[], None]] = {}
        self._asking: set[str] = set()
        self._deferred: dict[str, frozenset[str]] = {}
        self._names: dict[str, dict[str, Any]] = {}

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

    def defer(self, module: str, but: Sequence[str] = (), **names: Any) -> None:
        """Leave a module empty until somebody wants more of it than its modules ``but`` and these ``names``."""
        if module not in sys.modules:
            self._deferred[module] = frozenset(f"{module}.{one}" for one in but)
            self._names[module] = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find the module by the other finders, and call our function after it is loaded; None for other names."""
        package = name.rpartition(".")[0]
        if package in self._deferred and name not in self._deferred[package]:
            _fill(sys.modules[package])
        if name in self._asking or not (name in self._waiting or name in self._deferred):
            return None
        self._asking.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._asking.discard(name)
        loader: Any = spec.loader if spec else None
        if not hasattr(loader, "exec_module"):
            return None
        execute = loader.exec_module
        if name in self._deferred:

            def execute_later(module: ModuleType) -> None:
                module.__class__ = _Deferred
                module.__dict__.update(self._names[name], _execute=execute)

            loader.exec_module = execute_later
            return spec

        def execute_then_act(module: ModuleType) -> None:
            """Once: a program may ask first whether there is such a module, and import it later or never."""
            act, before = self._waiting.pop(name, None), self._around.pop(name, None)
            if before is not None:
                before()
            execute(module)
            if act is not None:
                act(module)

        loader.exec_module = execute_then_act  # on this one instance; the loader stays what it is
        return spec


class _Deferred(ModuleType):
    """A module that is executed when a name of it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _fill(self)
        return getattr(self, name)


def _fill(module: ModuleType) -> None:
    """Execute a deferred module, once."""
    if isinstance(module, _Deferred):
        module.__class__ = ModuleType  # type: ignore[assignment]
        module.__dict__.pop("_execute")(module)
