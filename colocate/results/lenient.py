# SPDX-License-Identifier: Apache-2.0
"""Read whatever of a damaged document still fits a type, for views that must not stumble over it.

A record that is judged again has to be whole; that is `colocate.results.record`'s business.
"""

import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Fit = Callable[[Any], Any]

_UNFIT = object()
_EMPTY: dict[Any, Callable[[], Any]] = {tuple: list, dict: dict}


def read_leniently(document: Any, kind: type) -> dict[str, Any]:
    """Every key of a dataclass or typed dictionary, with what the document has under it where that fits, else None.

    Parts of lists and tables that do not fit are left out. A list that is none is empty, and so is a whole object.
    Keys that the type does not know stay as they are.
    """
    found: dict[str, Any] = _object(kind)(document if isinstance(document, Mapping) else {})
    return found


@cache
def _fit(kind: Any) -> Fit:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if origin in (Union, types.UnionType):
        return _either([_fit(argument) for argument in arguments])
    if origin is Literal:
        return lambda value: value if isinstance(value, str | int) and value in arguments else _UNFIT
    if origin in (tuple, list):
        return _list(arguments)
    if origin in (dict, Mapping):
        return _table(_fit(arguments[1]))
    if _keys(kind):
        return _part(kind)
    return _scalar(kind)


def _scalar(kind: Any) -> Fit:
    accepted = {float: (float, int), int: (int,), bool: (bool,), type(None): (type(None),)}.get(kind, (str,))
    if isinstance(kind, type) and issubclass(kind, Enum):
        known = {member.value for member in kind}
        return lambda value: value if isinstance(value, str) and value in known else _UNFIT
    return lambda value: value if type(value) in accepted else _UNFIT


def _either(fits: list[Fit]) -> Fit:
    def fit(value: Any) -> Any:
        return next((found for one in fits if (found := one(value)) is not _UNFIT), _UNFIT)

    return fit


def _list(arguments: tuple[Any, ...]) -> Fit:
    """A list of any length, or one of a fixed length whose parts all have to fit."""
    if arguments[-1] is not ... and len(arguments) > 1:
        several = [_fit(argument) for argument in arguments]

        def fixed(value: Any) -> Any:
            found = [one(part) for one, part in zip(several, value, strict=False)] if isinstance(value, list) else []
            return found if len(found) == len(several) == len(value) and _UNFIT not in found else _UNFIT

        return fixed
    one = _fit(arguments[0])
    return lambda value: [f for part in value if (f := one(part)) is not _UNFIT] if isinstance(value, list) else _UNFIT


def _table(one: Fit) -> Fit:
    def fit(value: Any) -> Any:
        if not isinstance(value, dict):
            return _UNFIT
        return {key: found for key, part in value.items() if (found := one(part)) is not _UNFIT}

    return fit


def _part(kind: Any) -> Fit:
    """An object among others: one that lacks what it has to have does not fit."""
    whole, needed = _object(kind), _needed(kind)

    def fit(value: Any) -> Any:
        if not isinstance(value, dict):
            return _UNFIT
        found = whole(value)
        return _UNFIT if any(found[key] is None for key in needed) else found

    return fit


@cache
def _object(kind: Any) -> Fit:
    fits = {key: (_whole(one), _otherwise(one)) for key, one in _keys(kind).items()}

    def fit(value: Any) -> Any:
        found = dict(value)
        for key, (one, otherwise) in fits.items():
            reported = one(value.get(key))
            found[key] = otherwise() if reported is _UNFIT else reported
        return found

    return fit


def _whole(kind: Any) -> Fit:
    """Do as :func:`_fit`, but keep whatever fits of an object that can stand alone."""
    if not _keys(kind):
        return _fit(kind)
    whole = _object(kind)
    return lambda value: whole(value if isinstance(value, dict) else {})


def _otherwise(kind: Any) -> Callable[[], Any]:
    return _EMPTY.get(get_origin(kind) or kind, lambda: None)


def _needed(kind: Any) -> list[str]:
    """The keys whose type does not allow None, lists and objects apart."""
    return [
        key
        for key, one in _keys(kind).items()
        if _fit(one)(None) is _UNFIT and _otherwise(one)() is None and not _keys(one)
    ]


@cache
def _keys(kind: Any) -> Mapping[str, Any]:
    """The keys of a dataclass or typed dictionary with their types; none for any other type."""
    if not isinstance(kind, type):
        return {}
    hints = get_type_hints(kind) if is_dataclass(kind) or hasattr(kind, "__total__") else {}
    return {one.name: hints[one.name] for one in fields(kind)} if is_dataclass(kind) else hints
