"""Traces of an allocator and their replay."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.probe.virtual_gpu.allocator import CachingAllocator, OutOfMemory
from colocate.probe.virtual_gpu.convolutions import Convolution, workspace_bound
from colocate.probe.virtual_gpu.trace import (
    GRADIENTS,
    PARAMETERS,
    AllocationTrace,
    composition,
    floor_bytes,
    no_workspace,
    replay,
)

MIB = 1024**2


def convolution(**changes) -> Convolution:
    """A dense 3x3 convolution of 10 MiB into 20 MiB."""
    plain = Convolution(
        backward=False,
        transposed=False,
        channels_last=False,
        benchmark=False,
        element_bytes=4,
        groups=1,
        input_channels=64,
        output_channels=128,
        input_bytes=10 * MIB,
        weight_bytes=MIB,
        output_bytes=20 * MIB,
        kernel=(3, 3),
        stride=(1, 1),
        dilation=(1, 1),
    )
    return plain._replace(**changes)


def trace_of(*events) -> AllocationTrace:
    """``(number, MiB)`` allocates, ``-number`` releases, a `Convolution` runs."""
    trace = AllocationTrace()
    for event in events:
        if isinstance(event, Convolution):
            trace.convolved(event)
        elif isinstance(event, tuple):
            trace.allocated(event[0], event[1] * MIB, 0)
        elif event == 0:
            trace.emptied()
        else:
            trace.freed(-event)
    return trace


requests = st.lists(st.one_of(st.integers(1, 40 * MIB), st.integers(-30, 0)), max_size=60)


@settings(deadline=None, max_examples=60)
@given(requests)
def test_a_replay_asks_what_was_asked(wanted) -> None:
    """The allocator of the program and the one of the replay come to the same peaks, also through a file."""
    trace, original, live, number = AllocationTrace(), CachingAllocator(), {}, 0
    for one in wanted:
        if one > 0:
            number += 1
            live[number] = original.malloc(one)
            trace.allocated(number, one, 0)
        elif live:
            key = sorted(live)[one % len(live)]
            original.free(live.pop(key))
            trace.freed(key)

    repeated = replay(trace, no_workspace)

    assert repeated.reserved.highest == original.reserved.highest
    assert repeated.allocated.highest == original.allocated.highest
    assert repeated.allocated.current == original.allocated.current


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    trace = trace_of((1, 3), convolution(), (2, 30), -1, convolution(groups=2), convolution(), 0)
    trace.kinds[2] = GRADIENTS

    trace.write(tmp_path / "1.trace")
    read = AllocationTrace.read(tmp_path / "1.trace")

    assert list(read.events()) == list(trace.events())
    assert read.convolutions == [convolution(), convolution(groups=2)]
    assert read.kinds == {2: GRADIENTS}
    assert [path.name for path in tmp_path.iterdir()] == ["1.trace"]


def test_workspaces_come_on_top_while_a_convolution_runs_and_are_reused_afterwards() -> None:
    trace = trace_of((1, 30), convolution(), (2, 20), convolution())

    assert replay(trace, no_workspace).reserved.highest == 50 * MIB
    assert replay(trace, lambda call: 40 * MIB).allocated.highest == 90 * MIB
    assert replay(trace, lambda call: 40 * MIB).reserved.highest == 110 * MIB, "the first one's rest cannot serve"


def test_a_workspace_that_finds_no_room_is_gone_without() -> None:
    """PyTorch takes the next plan of cuDNN when one does not fit."""
    allocator = CachingAllocator()
    allocator.limit_bytes = 50 * MIB

    replay(trace_of((1, 30), convolution()), lambda call: 40 * MIB, allocator)

    assert allocator.num_ooms == 0
    assert allocator.allocated.highest == 30 * MIB


def test_only_dense_convolutions_are_taken_to_need_a_workspace() -> None:
    assert workspace_bound(convolution()) == 2 * 31 * MIB
    assert workspace_bound(convolution(benchmark=True)) > workspace_bound(convolution())
    assert workspace_bound(convolution(kernel=(1, 1))) == 0
    assert workspace_bound(convolution(groups=64)) == 0


def test_the_parts_of_a_peak_add_up_to_it() -> None:
    trace = trace_of((1, 30), (2, 21), -2, (3, 20), (4, 4), -3)
    trace.kinds.update({1: PARAMETERS, 3: GRADIENTS})

    parts = composition(trace)

    assert (parts.parameters, parts.gradients, parts.optimizer, parts.activations) == (30 * MIB, 20 * MIB, 0, 4 * MIB)
    assert parts.reserved == replay(trace, no_workspace).reserved.highest
    assert parts.fragmentation == parts.reserved - 54 * MIB


def test_the_floor_is_below_a_peak_that_the_cache_made() -> None:
    """30 MiB stay cached for nothing while 40 MiB are allocated: under a limit they are given back."""
    trace = trace_of((1, 30), -1, (2, 40))

    assert replay(trace, no_workspace).reserved.highest == 70 * MIB
    floor = floor_bytes(trace, no_workspace, 70 * MIB)

    assert floor == 40 * MIB
    below = CachingAllocator()
    below.limit_bytes = floor - 1
    with pytest.raises(OutOfMemory):
        replay(trace, no_workspace, below)


def test_a_stream_does_not_get_the_blocks_of_another() -> None:
    trace = trace_of((1, 30), -1)
    trace.allocated(2, 30 * MIB, 7)
    trace.freed(2)
    trace.allocated(3, 30 * MIB, 7)

    assert replay(trace, no_workspace).reserved.highest == 60 * MIB
