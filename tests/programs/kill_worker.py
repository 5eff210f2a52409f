"""A training that kills the pytest process that watches it: the parent of its supervisor."""

import os
import signal
from pathlib import Path

supervisor = os.getppid()
worker = int(Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[1])
os.kill(worker, signal.SIGKILL)
signal.pause()
