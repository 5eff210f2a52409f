# SPDX-License-Identifier: Apache-2.0
"""Says what the blocks of a trace hold: parameters, gradients, the optimizer's state.

Only asked for by predictions. Parameters are known when a module moves to the device or an optimizer steps, gradients
after a backward pass, states after a step; a block's kind counts from its allocation on, so that late is early enough.
"""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from .memory import DeviceMemory
from .trace import GRADIENTS, OPTIMIZER, PARAMETERS


class Attribution:
    """Marks the blocks of parameters, gradients and optimizer states as they become known."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self._parameters: dict[int, weakref.ref[Any]] = {}

    def install(self) -> None:
        """Follow modules, backward passes and optimizers of this process."""
        self._follow_modules()
        self._follow_backward()
        register_optimizer_step_post_hook(lambda optimizer, args, kwargs: self.stepped(optimizer))

    def stepped(self, optimizer: Any) -> None:
        """After a step: everything that the optimizer knows."""
        self.know(parameter for group in optimizer.param_groups for parameter in group["params"])
        for state in optimizer.state.values():
            for tensor in _tensors(state):
                self._memory.mark_tensor(tensor, OPTIMIZER)

    def know(self, parameters: Iterable[Any]) -> None:
        """These are parameters, or buffers that live as long."""
        for parameter in parameters:
            if isinstance(parameter, FakeTensor):
                self._memory.mark_tensor(parameter, PARAMETERS)
                self._parameters[id(parameter)] = weakref.ref(parameter)

    def mark_gradients(self) -> None:
        """Mark what is in ``.grad`` as gradients."""
        for key, reference in list(self._parameters.items()):
            parameter = reference()
            if parameter is None:
                del self._parameters[key]
            elif isinstance(parameter, FakeTensor) and parameter.is_leaf and isinstance(parameter.grad, FakeTensor):
                self._memory.mark_tensor(parameter.grad, GRADIENTS)

    def _follow_modules(self) -> None:
        apply = torch.nn.Module._apply

        def apply_and_know(module: Any, function: Any, recurse: bool = True) -> Any:
            result = apply(module, function, recurse)
            self.know(module._parameters.values())
            self.know(module._buffers.values())
            return result

        torch.nn.Module._apply = apply_and_know

    def _follow_backward(self) -> None:
        backward = torch.autograd.backward

        def backward_and_mark(*args: Any, **kwargs: Any) -> Any:
            result = backward(*args, **kwargs)
            self.mark_gradients()
            return result

        torch.autograd.backward = backward_and_mark


def _tensors(value: Any) -> Iterable[Any]:
    """The tensors in an optimizer's state, which may nest lists and dictionaries (LBFGS, Shampoo)."""
    if isinstance(value, FakeTensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
