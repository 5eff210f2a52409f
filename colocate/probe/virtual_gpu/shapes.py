# SPDX-License-Identifier: Apache-2.0
"""Remembers what operators give for arguments of the same shapes, so that a fake kernel runs once per shape.

A training repeats its operators in every step, and a fake kernel takes ten times as long as this look-up. Torch has
such a memory of its own, which looks at much more than can differ here.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

# Arguments that say all of themselves by type and value: 1, 1.0 and True are three.
PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)

# Shapes of programs whose every batch is new, as in loops over texts, need not be kept for ever.
MOST_KNOWN = 50_000

EMPTY_STRIDED, META = torch.empty_strided, torch.device("meta")  # the function as it is before others patch it

Recipe = Callable[[Any], Any]  # makes one result of the arguments


class Unlike(Exception):
    """Something about the arguments or the results is not said by shapes."""


class KnownShapes:
    """Results of operators by the shapes of their arguments.

    Args:
        mode: makes the results of operators that are not known yet.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._known: dict[Any, tuple[type | None, list[Recipe]] | None] = {}

    def dispatch(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """The results of an operator, as the fake mode gives them."""
        try:
            key = self._key(function, args, kwargs)
        except Unlike:
            return self._dispatch(function, types, args, kwargs)
        if key not in self._known:
            result = self._dispatch(function, types, args, kwargs)
            if len(self._known) < MOST_KNOWN:
                self._known[key] = self._recipes(function, (*args, *kwargs.values()), result)
            return result
        known = self._known[key]
        return self._dispatch(function, types, args, kwargs) if known is None else _made(known, args, kwargs)

    def known(self, function: Any, args: Any, kwargs: Any) -> Any:
        """The results of an operator whose arguments were seen before; NotImplemented for all others."""
        try:
            known = self._known.get(self._key(function, args, kwargs))
        except Unlike:
            return NotImplemented
        return NotImplemented if known is None else _made(known, args, kwargs)

    def _key(self, function: Any, args: Any, kwargs: Any) -> Any:
        mode = torch.get_default_dtype(), torch.is_inference_mode_enabled()
        return function, mode, _described(args), tuple(kwargs), _described(kwargs.values()) if kwargs else ()

    def _dispatch(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Run the fake kernel; where that is a decomposition, its first result is a named tuple, which ends here."""
        result = self._mode.dispatch(function, types, args, kwargs)
        return tuple(result) if isinstance(result, tuple) else result

    def _recipes(self, function: Any, args: Any, result: Any) -> tuple[type | None, list[Recipe]] | None:
        """How to make these results again; None for results that may differ between two equal calls."""
        tags = function.tags
        if torch.Tag.inplace_view in tags or torch.Tag.dynamic_output_shape in tags:
            return None
        several = type(result) in (tuple, list)
        results, taken = result if several else [result], set(_storages(args))
        try:
            recipes = [self._recipe(function, args, one, taken) for one in results]
        except Unlike:
            return None
        storages = list(_storages(results))
        if len(set(storages)) < len(storages) and not function.is_view:  # results that share memory of their own
            return None
        return type(result) if several else None, recipes

    def _recipe(self, function: Any, args: Any, result: Any, taken: set[int]) -> Recipe:
        if type(result) in PLAIN:
            return lambda args: result
        if not _is_fake(result) or result.constant is not None:
            raise Unlike
        for place, arg in enumerate(args):
            if arg is result:  # written in place
                return lambda args: args[place]
        shape, stride, dtype = tuple(result.shape), result.stride(), result.dtype
        offset, storage, fake = result.storage_offset(), result.untyped_storage(), self._maker(result)
        is_in_first = bool(args) and _is_fake(args[0]) and args[0].untyped_storage()._cdata == storage._cdata
        if function.is_view and not is_in_first:
            raise Unlike
        if is_in_first:

            def view(args: Any) -> Any:
                seen = EMPTY_STRIDED((0,), (1,), dtype=dtype, device=META)
                seen.set_(args[0].untyped_storage(), offset, shape, stride)
                return fake(seen)

            return view
        new = EMPTY_STRIDED(shape, stride, dtype=dtype, device=META)
        if offset or new.untyped_storage().nbytes() != storage.nbytes() or storage._cdata in taken:
            raise Unlike

        return lambda args: fake(EMPTY_STRIDED(shape, stride, dtype=dtype, device=META))

    def _maker(self, pattern: Any) -> Callable[[Any], Any]:
        """Make fake tensors like this one around meta tensors: what torch's constructor does, without its checks."""
        device, state = pattern.fake_device, {**pattern.__dict__}
        throws = not self._mode._allow_unsafe_data_ptr_access
        guard = torch._C._set_throw_on_mutable_data_ptr if throws else torch._C._set_warn_deprecated_on_mutable_data_ptr

        def fake(meta: Any) -> Any:
            made = torch.Tensor._make_subclass(
                FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=device
            )
            made.__dict__.update(state)
            guard(made)
            return made

        return fake


def _made(known: tuple[type | None, list[Recipe]], args: Any, kwargs: Any) -> Any:
    container, recipes = known
    given = (*args, *kwargs.values()) if kwargs else args
    return recipes[0](given) if container is None else container(recipe(given) for recipe in recipes)


def _is_fake(one: Any) -> bool:
    return type(one) is FakeTensor and one.layout is torch.strided


def _storages(args: Any) -> Iterator[int]:
    """The storages of fake tensors among these and in their lists: an optimizer's operators have thousands."""
    for arg in args:
        for one in arg if type(arg) in (tuple, list) else (arg,):
            if _is_fake(one):
                yield one.untyped_storage()._cdata


def _described(args: Any) -> tuple[Any, ...]:
    """All that an operator's results can depend on, but for values.

    Raises:
        Unlike: an argument is something else than a fake tensor without values, or plain.
    """
    described: list[Any] = []
    for arg in args:
        kind = type(arg)
        if kind is FakeTensor:
            if arg.constant is not None or arg.dtype.is_complex or arg.layout is not torch.strided:
                raise Unlike
            described += (arg.dtype, arg.shape, arg.stride(), arg.storage_offset(), arg.fake_device)
        elif kind is list or kind is tuple:
            described += (kind, _described(arg))
        elif kind in PLAIN:
            described += (kind, arg)
        else:
            raise Unlike
    return tuple(described)
