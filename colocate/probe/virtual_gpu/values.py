# SPDX-License-Identifier: Apache-2.0
"""True values of small tensors on the emulated device, as far as the host can know them.

Programs decide by values: lengths, counters, masks, a gradient scaler's factor. Where a small tensor on the device
was computed only from values that came from the host, the same operators are run on the host too, storage by storage,
so that views share what they share on a GPU. Everything else is unknown: it reads as 1.0, 0 or False, counts as many as
there can be, and what the program decides by it is told to `decisions`, also after it came to the host.
"""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from ..coverage.decisions import UNKNOWN, Decisions
from .memory import DeviceMemory

aten = torch.ops.aten

# Whole label maps and data sets of token ids are known, so that counts and lengths computed from them are true; what is
# computed on the device from them is repeated on the host where that costs milliseconds.
MOST_TRANSFERRED = 1 << 24
MOST_INTEGERS = 1 << 22
MOST_FLOATS = 1 << 10
MOST_CONSTANTS = 1 << 18  # fractions that are all alike: masks of ones, which transformers used to make so
MOST_VERDICTS = 1 << 26  # results of isfinite and the like, which are known whatever their input

UNDEFINED = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
CONSTANTS = {aten.ones.default, aten.zeros.default, aten.full.default}
# "No gradient is infinite": what the kernel would write into its second argument is what already stands there.
LEAVES_VALUES = {aten._amp_foreach_non_finite_check_and_unscale_.default}


# What one operand decides alone: true or anything, false and anything, which is how loops over the device end.
ABSORBED_BY = {
    aten.bitwise_or.Tensor: True,
    aten.logical_or.default: True,
    aten.bitwise_and.Tensor: False,
    aten.logical_and.default: False,
}


# Counting what is true of unknown values: as many as there can be, as for a selection by them.
COUNTS = {aten.sum.default, aten.sum.dim_IntList, aten.count_nonzero.default, aten.count_nonzero.dim_IntList}
ANY = {aten.any.default, aten.any.dim, aten.any.dims}


class Unknown(Exception):
    """An operand's values are not known."""


class KnownValues:
    """Reads, computes and forgets the true values behind fake tensors."""

    def __init__(self, memory: DeviceMemory, decisions: Decisions) -> None:
        self._memory = memory
        self._decisions = decisions
        self._met_assumed = False
        self.reads_item = self.number_was_unknown = False
        self.on_host = False
        self._facts: dict[Any, _OperatorFacts] = {}

    def of(self, tensor: Any) -> torch.Tensor | None:
        """The values of a fake tensor, as a host tensor that shares the remembered storage; None if unknown."""
        held = self._memory.held(tensor)
        if held is None or held.known is None:
            return None
        view = torch.empty(0, dtype=tensor.dtype)
        return view.set_(held.known, tensor.storage_offset(), tensor.size(), tensor.stride())

    def is_certain(self, tensor: Any) -> bool:
        """The values are known, and not only assumed."""
        held = self._memory.held(tensor)
        return held is not None and held.known is not None and not held.assumed

    def read(self, tensor: Any) -> torch.Tensor:
        """A host tensor with the known values, or with ones, zeros or False where they are unknown."""
        known = self.of(tensor)
        if known is not None:
            values = known.clone()
        else:
            fill = 1 if tensor.dtype.is_floating_point or tensor.dtype.is_complex else 0
            values = torch.full(tuple(tensor.shape), fill, dtype=tensor.dtype)
        if not self.is_certain(tensor) and tensor.numel():
            self.on_host = True
            setattr(values, UNKNOWN, True)
        return values

    def scalar(self, tensor: Any) -> Any:
        """What ``item()`` returns; of an unknown value what was decided."""
        value = self.read(tensor).item()
        return value if self.is_certain(tensor) else self._unknown_scalar(value)

    def equal(self, left: Any, right: Any) -> bool:
        """Whether two tensors have the same values, or nearly the same: decided where nobody knows."""
        known = [self.of(one) if isinstance(one, FakeTensor) else one for one in (left, right)]
        if known[0] is not None and known[1] is not None:
            return bool(torch.equal(*known))
        same = left.untyped_storage()._cdata == right.untyped_storage()._cdata
        return (same and left.storage_offset() == right.storage_offset()) or self._decisions.decide(False)

    def run_on_host(self, function: Any, args: Any, kwargs: Any) -> Any:
        """An operator of the host, whose results are unknown if an operand is."""
        if not any(_is_unknown(one) for one in (*args, *kwargs.values())):
            return function(*args, **kwargs)
        result = function(*args, **kwargs)
        if function is aten._local_scalar_dense.default:
            return self._unknown_scalar(result)
        if function in (aten.equal.default, aten.allclose.default):
            return self._decisions.decide(False)
        for one in result if isinstance(result, list | tuple) else (result,):
            if isinstance(one, torch.Tensor):
                setattr(one, UNKNOWN, True)
        return result

    def _unknown_scalar(self, value: Any) -> Any:
        if isinstance(value, bool):
            return self._decisions.decide(value)
        self.number_was_unknown = True
        if not self.reads_item:
            self._decisions.escaped()
        return self._decisions.number(value) if isinstance(value, float) else value

    def remember(self, tensor: Any, values: torch.Tensor, *, assumed: bool = False) -> None:
        """Values of a tensor that has just been registered with a storage of its own, or what is assumed of them."""
        held = self._memory.held(tensor)
        if held is None or held.num_bytes != tensor.numel() * tensor.element_size():
            return
        copy = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype)
        held.known = copy.copy_(values).untyped_storage()
        held.assumed = assumed

    def assume(self, tensor: Any, value: bool) -> None:
        """Set all elements to this value, unless the true ones are known."""
        if tensor.numel() <= MOST_VERDICTS and self.of(tensor) is None:
            self.remember(tensor, torch.full(tuple(tensor.shape), value))

    def follow(self, function: Any, args: Any, kwargs: Any, fresh: list[Any], result: Any) -> None:
        """Do on the host what an operator has just done on the device, as far as its inputs are known.

        Args:
            function: the operator.
            args: its arguments, in which fake tensors stand for those on the device.
            kwargs: its keyword arguments.
            fresh: fake tensors among the results whose storages are new.
            result: everything the operator returned.
        """
        facts = self._facts_of(function)
        if facts.mutates:
            self._follow_mutation(function, args, kwargs, facts)
        elif fresh and facts.predictable and isinstance(result, FakeTensor) and _small(result, function):
            self._met_assumed = False
            values = self.compute(function, args, kwargs)
            assumed = self._met_assumed
            if values is None and function in ABSORBED_BY:
                values, assumed = self._absorbed(args, ABSORBED_BY[function], result), False
            if values is None:
                values, assumed = self._most(function, args, result), True
            if values is not None and values.shape == result.shape:
                self.remember(result, values, assumed=assumed)

    def compute(self, function: Any, args: Any, kwargs: Any) -> torch.Tensor | None:
        """The operator's one result on the host; None if an input is unknown, or the host lacks the operator."""
        values = self.compute_all(function, args, kwargs)
        return values[0] if values is not None and len(values) == 1 else None

    def compute_all(self, function: Any, args: Any, kwargs: Any) -> list[torch.Tensor] | None:
        """The operator's results on the host, if all are tensors; None if an input is unknown."""
        try:
            values = self._run(function, args, kwargs)
        except Exception:
            return None
        found = list(values) if isinstance(values, list | tuple) else [values]
        return found if all(isinstance(one, torch.Tensor) for one in found) else None

    def _absorbed(self, operands: Any, by: bool, result: Any) -> torch.Tensor | None:
        """The result where a known operand decides it alone, whatever the other is."""
        for known in (self.of(one) if isinstance(one, FakeTensor) else one for one in operands):
            if isinstance(known, torch.Tensor) and (result.dtype is torch.bool or not by) and bool((known == by).all()):
                return torch.full(tuple(result.shape), by, dtype=result.dtype)
        return None

    def _most(self, function: Any, args: Any, result: Any) -> torch.Tensor | None:
        """The largest count of unknown truth values; that one of them is true."""
        if function in ANY:
            return torch.full(tuple(result.shape), True)
        if function in COUNTS and args[0].dtype is torch.bool and result.numel():
            return torch.full(tuple(result.shape), args[0].numel() // result.numel(), dtype=result.dtype)
        return None

    def _follow_mutation(self, function: Any, args: Any, kwargs: Any, facts: "_OperatorFacts") -> None:
        if function in LEAVES_VALUES:
            return
        written = [tensor for tensor in facts.written(args, kwargs) if isinstance(tensor, FakeTensor)]
        if function is aten.copy_.default and self._overwrite(args[0], args[1]):
            return
        if not any(self._is_known(tensor) for tensor in written):
            return
        self._met_assumed = False
        try:
            self._run(function, args, kwargs)
        except Exception:  # unknown inputs, or an operator that the host lacks
            for tensor in written:
                self._forget(tensor)
        else:
            self._assume(written)

    def _overwrite(self, target: Any, source: Any) -> bool:
        """A whole small storage is written: its values are known afterwards if the source's are."""
        of_host = not isinstance(source, FakeTensor)
        if not isinstance(target, FakeTensor) or not _small(target, of_host=of_host):
            return False
        values = source if of_host else self.of(source)
        if values is None:
            return False
        held = self._memory.held(target)
        if held is None or held.num_bytes != target.numel() * target.element_size():
            return False
        assumed = _is_unknown(source) if of_host else not self.is_certain(source)
        self.remember(target, values.expand(target.shape), assumed=assumed)
        return True

    def _assume(self, written: list[Any]) -> None:
        """What was computed with an assumed operand is assumed too."""
        for held in map(self._memory.held, written):
            if held is not None and self._met_assumed:
                held.assumed = True

    def _is_known(self, tensor: Any) -> bool:
        held = self._memory.held(tensor)
        return held is not None and held.known is not None

    def _forget(self, tensor: Any) -> None:
        held = self._memory.held(tensor)
        if held is not None:
            held.known = None

    def _run(self, function: Any, args: Any, kwargs: Any) -> Any:
        host_args = [self._on_host(arg) for arg in args]
        host_kwargs = {name: self._on_host(arg) for name, arg in kwargs.items()}
        with torch.no_grad():
            return function(*host_args, **host_kwargs)

    def _on_host(self, arg: Any) -> Any:
        if isinstance(arg, FakeTensor):
            known = self.of(arg)
            if known is None:
                raise Unknown
            self._met_assumed = self._met_assumed or not self.is_certain(arg)
            return known
        if self.on_host and _is_unknown(arg):
            self._met_assumed = True
        if isinstance(arg, torch.device):
            return torch.device("cpu")
        if type(arg) in (list, tuple):
            return type(arg)(self._on_host(one) for one in arg)
        return arg

    def _facts_of(self, function: Any) -> "_OperatorFacts":
        facts = self._facts.get(function)
        if facts is None:
            facts = self._facts[function] = _OperatorFacts(function)
        return facts


class _OperatorFacts:
    """Facts of an operator's schema: which arguments it writes, and whether its result depends on them only."""

    __slots__ = ("_names", "_positions", "mutates", "predictable")

    def __init__(self, function: Any) -> None:
        written = [
            (position, argument.name)
            for position, argument in enumerate(function._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        self._positions = [position for position, _ in written]
        self._names = [name for _, name in written]
        self.mutates = bool(written)
        self.predictable = torch.Tag.nondeterministic_seeded not in function.tags and function not in UNDEFINED

    def written(self, args: Any, kwargs: Any) -> list[Any]:
        """The tensors that the operator writes."""
        found = [args[position] for position in self._positions if position < len(args)]
        found += [kwargs[name] for name in self._names if name in kwargs]
        return [tensor for one in found for tensor in (one if isinstance(one, list | tuple) else (one,))]


def _small(tensor: Any, function: Any = None, *, of_host: bool = False) -> bool:
    if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
        return bool(tensor.numel() <= (MOST_CONSTANTS if function in CONSTANTS else MOST_FLOATS))
    return bool(tensor.numel() <= (MOST_TRANSFERRED if of_host else MOST_INTEGERS))


def _is_unknown(one: Any) -> bool:
    if isinstance(one, list | tuple):
        return any(map(_is_unknown, one))
    return isinstance(one, torch.Tensor) and UNKNOWN in one.__dict__
