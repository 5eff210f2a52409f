"""A training that ends the pytest process that watches it, the parent of its supervisor, by the signal it is given."""

import os
import signal
import sys
from pathlib import Path

supervisor = os.getppid()
worker = int(Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[1])
os.kill(worker, signal.Signals[sys.argv[1]])
signal.pause()
