# SPDX-License-Identifier: Apache-2.0
"""Run one group under observation and record what was seen."""

from colocate.harness import environment
from colocate.harness.attempt import AttemptRunner, Retries, attempt_on, new_directory, observing
from colocate.harness.dry_runs import DryRuns
from colocate.harness.group_run import GroupRun
from colocate.harness.prediction_cache import Cache
from colocate.harness.resume import Decision, decide, find_run, reported, take_up
from colocate.harness.sampler import Sampler
from colocate.harness.simulated_run import Parts, Program, SimulatedRun
from colocate.harness.simulation import NOT_MODELLED, Watcher, simulate
