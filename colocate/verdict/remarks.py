# SPDX-License-Identifier: Apache-2.0
"""What a measured run shows of its memory that is worth knowing beside the verdict, in words and with what to do. Pure.

Frameworks that take memory in advance, processes that hold a CUDA context each, and a peak before the first step.
"""

from collections.abc import Iterator

from colocate.units import format_mib
from colocate.verdict.evidence import Evidence, GpuProcess, Member
from colocate.verdict.measured_peak import SPIKE_BYTES, own_peak_bytes
from colocate.verdict.reasons import Reason, ReasonCode
from colocate.verdict.step_function import Steps

# A framework that takes memory when it starts: how much of what is free, and what turns that off.
PREALLOCATORS = {
    "JAX": (
        0.75,
        "XLA_PYTHON_CLIENT_PREALLOCATE=false, or take less with XLA_PYTHON_CLIENT_MEM_FRACTION=.30",
    ),
    "TensorFlow": (1.0, "TF_FORCE_GPU_ALLOW_GROWTH=true"),
}

# So many processes of one training with a context at the same time are no accident of its start.
_MANY = 3


def remarks(evidence: Evidence) -> Iterator[Reason]:
    """Everything of that kind; nothing on a virtual GPU, whose dry run is cut."""
    if evidence.device.basis != "measured":
        return
    for member in evidence.members:
        yield from _start_order(evidence, member)
        yield from _many_contexts(evidence, member)
        yield from _peak_at_start(member)


def _start_order(evidence: Evidence, member: Member) -> Iterator[Reason]:
    """What it holds is not what it needs, and the other order of starting would leave the other what it does not take.

    In the order that was run the foreground started last, so a foreground took its share of what was left.
    """
    found = [one.framework for one in evidence.gpu_processes if one.owner == member.role and one.framework]
    if not found:
        return
    share, variable = PREALLOCATORS[found[0]]
    text = f"{member.name} takes memory in advance ({found[0]}), so what it holds is not what it needs"
    other = evidence.background if member.role == "foreground" else evidence.foreground
    if other is not None:
        first, second = ("foreground", "background") if member.role == "foreground" else ("background", "foreground")
        free_bytes = evidence.limits.gpu_bytes - (evidence.baseline_bytes or 0)
        needed = own_peak_bytes(other) or other.held_bytes
        left = round((1 - share) * free_bytes)
        text += "; who starts first decides who gets how much: "
        if member.role == "background":
            text += "this run started it first; started after the other it would take a share of what is left"
        elif needed is None:
            text += f"started first, the {first} would leave about {format_mib(left)} to the {second}"
        else:
            fits = "enough" if needed < left else "too little"
            text += (
                f"started first, the {first} would leave about {format_mib(left)} to the {second}, which held "
                f"{format_mib(needed)}: {fits}"
            )
    yield Reason(ReasonCode.START_ORDER, f"{text}; turn it off with {variable}")


def _many_contexts(evidence: Evidence, member: Member) -> Iterator[Reason]:
    own = [one for one in evidence.gpu_processes if one.owner == member.role]
    at_once = max((_beside(one, own) for one in own), key=len, default=[])
    if len(at_once) < _MANY:
        return
    sizes = [one.max_used_bytes for one in at_once if one.max_used_bytes is not None]
    size = f", {format_mib(sum(sizes))} together" if sizes else ""
    text = f"{len(at_once)} processes of {member.name} are on the GPU at once{size}: each has a CUDA context of its own"
    cause = "data-loader workers that touch CUDA are the usual cause; let them return tensors of the CPU"
    yield Reason(ReasonCode.MANY_CONTEXTS, f"{text}; {cause}")


def _beside(one: GpuProcess, others: list[GpuProcess]) -> list[GpuProcess]:
    """The processes that were there when one came."""
    return [other for other in others if other.first_s <= one.first_s <= other.last_s]


def _peak_at_start(member: Member) -> Iterator[Reason]:
    """Resuming costs more than training: a checkpoint is loaded onto the GPU while the model lives there already."""
    steps = [event.elapsed_s for event in member.progress_events if event.kind != "ready"]
    if not steps or not member.held or member.held_by != "allocator":
        return
    held = Steps.of(member.held, member.held[-1][0] + 1)
    before, after = held.cut(0.0, steps[0]).highest, held.cut(steps[0], held.end_s).highest
    if after and before > after + SPIKE_BYTES:
        text = f"{member.name} held {format_mib(before)} before its first step and at most {format_mib(after)} after"
        cure = "a checkpoint that is loaded onto the GPU beside the model does that; load it with map_location='cpu'"
        yield Reason(ReasonCode.PEAK_AT_START, f"{text}: {cure}")
