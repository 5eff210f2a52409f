# SPDX-License-Identifier: Apache-2.0
"""Start, capture, keep alive and end process trees. Knows no GPU and no plan."""

from colocate.process import out_of_memory, procfs, slurm
from colocate.process.exit_status import Exit
from colocate.process.keep_alive import KeepAlive, RestartPolicy
from colocate.process.procfs import (
    ProcessId,
    boot_id,
    describe,
    end,
    has_own_numbers,
    identify,
    sees_all_processes,
    variable_of,
    with_cookie,
)
from colocate.process.runner import SUPERVISES, Command, Process, start, stop_all
from colocate.process.slurm import Node
from colocate.process.supervisor import MAX_PROCESSES
