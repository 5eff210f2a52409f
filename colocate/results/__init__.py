# SPDX-License-Identifier: Apache-2.0
"""The run directory: written once, read back typed."""

from colocate.results import advice_files, journal, progress_file, status
from colocate.results.archive import Writer
from colocate.results.durations import Estimate, estimate
from colocate.results.group_result import GroupResult, combine_attempts
from colocate.results.layout import GroupDirectory, RunDirectory
from colocate.results.merge import merge
from colocate.results.progress_file import QUEUE, Heartbeat, tell
from colocate.results.reader import Part, StoredRun, group_result_of, group_results, instant, parts, read_run
from colocate.results.record import Attempt, read_attempt, read_evidence, whole, write_record
from colocate.results.run_record import PlanRecord, RunRecord
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
from colocate.results.versions import MOVE_MEMORY, packages
