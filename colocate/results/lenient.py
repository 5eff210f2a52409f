# SPDX-License-Identifier: Apache-2.0
"""Read whatever of a damaged document still fits a dataclass, for views that must not stumble over it.

A record that is judged again has to be whole; that is `colocate.results.record`'s business.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
Fit = Callable[[Any], Any]

_UNFIT = object()
_EMPTY: dict[Any, Callable[[], Any]] = {tuple: tuple, dict: dict, Mapping: dict}
_SCALARS: dict[Any, tuple[type, ...]] = {float: (float, int), int: (int,), bool: (bool,), types.NoneType: (type(None),)}


def read_leniently(document: Any, kind: type[T]) -> T:
    """Make an object of a dataclass of whatever fits in a document.

    A field that is not there has its default. One that does not fit is empty if it is a list, a table or an object,
    and None otherwise, whatever its type says. Parts of lists and tables that do not fit are left out.
    """
    reader: Any = kind
    found: T = _object(reader)(document)
    return found


@cache
def _fit(kind: Any) -> Fit:
    """How a value of a type is read; what does not fit comes out as `_UNFIT`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if origin in (Union, types.UnionType):
        several = [_fit(argument) for argument in arguments]
        return lambda value: next((found for one in several if (found := one(value)) is not _UNFIT), _UNFIT)
    if origin is Literal:
        return lambda value: value if isinstance(value, str | int) and value in arguments else _UNFIT
    if origin is tuple:
        return _list(_fit(arguments[0])) if arguments[-1] is ... else _fixed([_fit(one) for one in arguments])
    if origin in (dict, Mapping):
        return _table(_fit(arguments[1]))
    if is_dataclass(kind):
        return _part(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        known = {member.value: member for member in kind}
        return lambda value: known.get(value, _UNFIT) if isinstance(value, str) else _UNFIT
    accepted = _SCALARS.get(kind, (str,))
    return lambda value: value if type(value) in accepted else _UNFIT


def _list(one: Fit) -> Fit:
    def fit(value: Any) -> Any:
        return tuple(f for part in value if (f := one(part)) is not _UNFIT) if isinstance(value, list) else _UNFIT

    return fit


def _fixed(several: list[Fit]) -> Fit:
    """A list of a certain length, whose parts all have to fit."""

    def fit(value: Any) -> Any:
        if not isinstance(value, list) or len(value) != len(several):
            return _UNFIT
        found = tuple(one(part) for one, part in zip(several, value, strict=True))
        return _UNFIT if _UNFIT in found else found

    return fit


def _table(one: Fit) -> Fit:
    def fit(value: Any) -> Any:
        if not isinstance(value, dict):
            return _UNFIT
        return {key: found for key, part in value.items() if (found := one(part)) is not _UNFIT}

    return fit


def _part(kind: Any) -> Fit:
    """An object among others: one that lacks what it has to have does not fit."""
    hints = get_type_hints(kind)
    needed = [name for name, hint in hints.items() if not _is_complete_without(hint)]

    def fit(value: Any) -> Any:
        found = _object(kind)(value) if isinstance(value, dict) else _UNFIT
        return _UNFIT if found is _UNFIT or any(getattr(found, name) is None for name in needed) else found

    return fit


def _is_complete_without(hint: Any) -> bool:
    allows_none = _fit(hint)(None) is not _UNFIT
    return allows_none or is_dataclass(hint) or (get_origin(hint) or hint) in _EMPTY


@cache
def _object(kind: Any) -> Fit:
    """An object that can stand alone, so that whatever fits of it is kept."""
    hints = get_type_hints(kind)
    parts: list[tuple[str, Fit]] = [(name, _whole(hint)) for name, hint in hints.items()]
    instead = {one.name: (_default(one, hints[one.name]), _empty(hints[one.name])) for one in fields(kind)}

    def fit(value: Any) -> Any:
        document = value if isinstance(value, dict) else {}
        found = {}
        for name, fitted in parts:
            default, empty = instead[name]
            known = fitted(document[name]) if name in document else default()
            found[name] = empty() if known is _UNFIT else known
        return kind(**found)

    return fit


def _whole(hint: Any) -> Fit:
    """How a field of an object is read, of which another object is always kept."""
    fitting = _object if is_dataclass(hint) else _fit
    found: Fit = fitting(hint)
    return found


def _default(one: "Field[Any]", hint: Any) -> Callable[[], Any]:
    """What stands for a field that is not there."""
    if one.default_factory is not MISSING:
        return one.default_factory
    if one.default is not MISSING:
        return lambda: one.default
    return _nothing_of(hint) if is_dataclass(hint) else _empty(hint)


def _nothing_of(kind: Any) -> Callable[[], Any]:
    return lambda: _object(kind)({})


def _empty(hint: Any) -> Callable[[], Any]:
    """What stands for a value that does not fit."""
    return _EMPTY.get(get_origin(hint) or hint, lambda: None)
