# SPDX-License-Identifier: Apache-2.0
"""What lines of a log that speak of a full memory prove, beside what the allocator counted and how the process ended.

Words are one witness. With a second one, a failed process, they are proof; against the allocator of a training that
went on, which counted nothing, they are a warning; alone they prove only where they are the message itself. Pure.
"""

from collections.abc import Sequence
from typing import Literal

from colocate.verdict.evidence import Allocator, Member, MemoryWords, ProcessRun

Weight = Literal["proof", "doubt", "warning"]

COUNTED = "PyTorch"
"""The framework whose out-of-memories the probe counts; those of the CUDA libraries and the context it does not see."""


def weight(words: MemoryWords, process_runs: Sequence[ProcessRun], counted: bool) -> Weight:
    """What such a line weighs; ``counted``: a probe followed the allocator to the end, and counted no out-of-memory."""
    end = process_runs[words.process_run].exit if words.process_run < len(process_runs) else None
    failed = end is not None and process_runs[words.process_run].failed
    if words.certainty == "mentioned":
        return "warning"
    if words.memory == "host":
        return "doubt" if failed else "warning"
    if words.certainty == "possible":
        return "warning" if counted and not failed else "doubt"
    contradicted = counted and words.framework == COUNTED
    if failed:
        return "doubt" if contradicted and words.certainty == "reported" else "proof"
    if counted:
        return "doubt" if words.certainty == "raised" and not contradicted else "warning"
    return "proof" if words.certainty == "raised" and end is not None else "doubt"


def counted_none(allocators: Sequence[Allocator], probe_lost: bool) -> bool:
    """A probe followed an allocator that held memory, until the end, and no failed allocation reached the program."""
    held = [allocator for allocator in allocators if allocator.max_reserved_bytes]
    return bool(held) and not probe_lost and not any(one.num_ooms and one.ooms_raised != 0 for one in allocators)


def words_of(member: Member, wanted: Weight) -> tuple[MemoryWords, ...]:
    """The lines of a member's log that weigh so much; none where an out-of-memory is known anyway."""
    if member.out_of_memory:
        return ()
    counted = counted_none(member.allocators, member.probe_lost)
    return tuple(one for one in member.memory_words if weight(one, member.process_runs, counted) == wanted)
