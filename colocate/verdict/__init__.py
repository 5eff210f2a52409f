# SPDX-License-Identifier: Apache-2.0
"""Evidence becomes a verdict. Pure: reads no file, no clock and no GPU."""

from colocate.verdict.coverage import Coverage, Growth, PassCoverage
from colocate.verdict.evidence import (
    SCHEMA,
    STEP_KINDS,
    Allocator,
    Epoch,
    Evidence,
    Gap,
    GpuProcess,
    Interval,
    JudgedLimits,
    Listed,
    Listing,
    Member,
    MemoryWords,
    OutOfMemory,
    Owner,
    ProcessPeak,
    ProcessRun,
    ProgressEvent,
    Sample,
    Trace,
)
from colocate.verdict.measured_peak import own_peak_bytes
from colocate.verdict.memory_history import Steps, at_least, by_allocators, by_lists, summed
from colocate.verdict.memory_words import counted_none, weight
from colocate.verdict.overlap import foreground_window
from colocate.verdict.plan_verdict import AGAIN, PlanVerdict
from colocate.verdict.predicted_peak import LESS, MORE, PeakRange, allocator_range, member_range
from colocate.verdict.reasons import Reason, ReasonCode
from colocate.verdict.rules import judge
from colocate.verdict.verdict import WORST_LAST, MemoryClass, Outcome, Verdict, combine, memory_class
