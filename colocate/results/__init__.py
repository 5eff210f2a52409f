# SPDX-License-Identifier: Apache-2.0
"""The run directory: written once, read back typed."""

from colocate.results import advice_files, journal, progress_file, status
from colocate.results.archive import Writer
from colocate.results.attempts import (
    Attempt,
    GroupResult,
    asked_of,
    combine_attempts,
    group_result_of,
    group_results,
    is_outdated,
    read_attempt,
    reused_groups,
)
from colocate.results.durations import Estimate, estimate
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.merge import merge
from colocate.results.progress_file import QUEUE, Heartbeat, tell
from colocate.results.reader import (
    NO_FACTS,
    Part,
    Row,
    StoredRun,
    attempt_rows,
    instant,
    judged_record,
    mapping,
    number,
    parts,
    read_run,
)
from colocate.results.record import read_bare_evidence, read_record, write_record
from colocate.results.schema import RECORD_FIELDS, Record, fitted
from colocate.results.status import SILENT_S, GroupState, read_document
from colocate.results.text import (
    basis_of,
    carries_peak,
    colour,
    headroom_text,
    judged_text,
    line_of,
    over_budget_bytes,
    over_budget_text,
    peak_text,
)
from colocate.results.trace_files import EnergyReading, VitalsReading, read_energy, read_trace
from colocate.results.verify import judge_record, verify
from colocate.results.versions import packages

__all__ = [
    "NO_FACTS",
    "QUEUE",
    "RECORD_FIELDS",
    "SILENT_S",
    "Attempt",
    "EnergyReading",
    "Estimate",
    "GroupDirectory",
    "GroupResult",
    "GroupState",
    "Heartbeat",
    "Part",
    "Record",
    "Row",
    "RunDirectory",
    "StoredRun",
    "VitalsReading",
    "Writer",
    "advice_files",
    "asked_of",
    "attempt_rows",
    "basis_of",
    "carries_peak",
    "colour",
    "combine_attempts",
    "estimate",
    "fitted",
    "group_result_of",
    "group_results",
    "headroom_text",
    "instant",
    "is_outdated",
    "journal",
    "judge_record",
    "judged_record",
    "judged_text",
    "line_of",
    "mapping",
    "merge",
    "number",
    "over_budget_bytes",
    "over_budget_text",
    "packages",
    "parts",
    "peak_text",
    "progress_file",
    "read_attempt",
    "read_bare_evidence",
    "read_document",
    "read_energy",
    "read_record",
    "read_run",
    "read_trace",
    "reused_groups",
    "status",
    "tell",
    "verify",
    "write_record",
]
