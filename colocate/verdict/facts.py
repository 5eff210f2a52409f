# SPDX-License-Identifier: Apache-2.0
"""The facts of one group that several rules ask for, each computed once from the evidence. Pure."""

from dataclasses import dataclass

from colocate.units import format_mib
from colocate.verdict.evidence import Evidence, Interval
from colocate.verdict.measured_peak import PeakReading, left_no_trace, measured_peak, readings
from colocate.verdict.overlap import PhasePairs, foreground_window, overlap, phases_met
from colocate.verdict.predicted_peak import PeakRange, predicted_peak
from colocate.verdict.worst_case_peak import WorstCasePeak, worst_case_peak


@dataclass(frozen=True, slots=True)
class Facts:
    """What follows from the evidence of one group before any rule is applied.

    ``peak`` is the GPU's peak: bounds that meet in one number where the sources agree, None when nothing was read.
    ``readings`` are the maxima of each source. ``window`` is the time in which the foreground trained, ``overlap`` the
    share of it in which the background trained too, ``steps_beside`` the steps that the background made in it.
    ``off_gpu`` says that the foreground's memory is not on this GPU.
    """

    evidence: Evidence
    peak: PeakRange | None
    readings: tuple[PeakReading, ...]
    window: Interval | None
    overlap: float | None
    steps_beside: int
    phases_together: PhasePairs
    phases_apart: PhasePairs
    worst_case: WorstCasePeak | None
    off_gpu: bool

    @classmethod
    def of(cls, evidence: Evidence) -> "Facts":
        """Compute all facts of a group."""
        together, apart = phases_met(evidence)
        share, num_steps = overlap(evidence)
        return cls(
            evidence=evidence,
            peak=predicted_peak(evidence) if evidence.device.basis == "predicted" else measured_peak(evidence),
            readings=readings(evidence),
            window=foreground_window(evidence),
            overlap=share,
            steps_beside=num_steps,
            phases_together=together,
            phases_apart=apart,
            worst_case=worst_case_peak(evidence),
            off_gpu=left_no_trace(evidence),
        )

    @property
    def predicted(self) -> bool:
        """The group ran on a virtual GPU."""
        return self.evidence.device.basis == "predicted"

    @property
    def may_not_fit(self) -> bool:
        """The peak reached the limit, or a training ran out of memory, or the foreground failed."""
        evidence = self.evidence
        over = self.peak is not None and self.peak.expected_bytes >= evidence.limits.peak_bytes
        failed = any(run.exit is not None and not run.exit.ok for run in evidence.foreground.process_runs)
        return over or failed or any(member.out_of_memory for member in evidence.members)

    @property
    def readings_text(self) -> str:
        """The maxima of each source, for a message."""
        return ", ".join(f"{one.source} of the {one.of}: {format_mib(one.used_bytes)}" for one in self.readings)

    def peak_text(self, limit_bytes: int | None = None) -> str:
        """The peak with its bounds, for a message; beside a limit it is written so that it differs from that."""
        if self.peak is None:
            return "unknown"
        sizes = (self.peak.expected_bytes, self.peak.low_bytes, self.peak.high_bytes)
        expected, low, high = (format_mib(size, beside=limit_bytes) for size in sizes)
        return expected if self.peak.low_bytes == self.peak.high_bytes else f"{expected} ({low} to {high})"
