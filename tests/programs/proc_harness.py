"""A harness of its own process, to be killed by tests: starts members with the runner and then waits for ever.

Arguments: folder for logs, whether to fork off a process that inherits every descriptor, and the members' arguments.
"""

import json
import os
import signal
import sys
from pathlib import Path

from colocate.process.runner import Command, start


def main() -> None:
    folder, keep_pipes_open, *modes = sys.argv[1:]
    program = str(Path(__file__).with_name("proc_member.py"))
    members = []
    for number, mode in enumerate(modes):
        argv = (sys.executable, "-I", "-S", program, *mode.split(" "))
        command = Command(argv, Path(folder), dict(os.environ))
        members.append(start(command, log=Path(folder, f"{number}.log"), cookie=f"{folder}/{number}"))
    gpu_process = 0
    if keep_pipes_open == "yes" and (gpu_process := os.fork()) == 0:
        signal.pause()
    facts = {"supervisors": [member._supervisor.pid for member in members], "pids": [member.pid for member in members]}
    print(json.dumps({**facts, "gpu_process": gpu_process}), flush=True)
    while True:
        signal.pause()


main()
