# SPDX-License-Identifier: Apache-2.0
"""``colocate init``: write a first plan and a workflow for CI."""

import argparse
import json
import shlex
from pathlib import Path

from colocate.cli import common as command
from colocate.errors import ColocateError
from colocate.files import make_folder, write_text

TEMPLATES = Path(__file__).with_name("templates")
WORKFLOW = Path(".github/workflows/colocate.yml")
FOREGROUND, BACKGROUND = "python train.py --epochs 1", "python other.py"

EPILOG = """\
examples:
  colocate init "python train.py --epochs 1" "python other.py"
  colocate init "bash run.sh" "torchrun --nproc-per-node 1 train.py"
"""


def add(commands: command.Commands) -> None:
    """Declare the arguments."""
    parser = command.new(
        commands, run, "init", "Write a plan for two commands of your own, and a workflow for CI.", EPILOG
    )
    parser.add_argument("foreground", nargs="?", default=FOREGROUND, help=f"the training to judge ({FOREGROUND!r})")
    parser.add_argument("background", nargs="?", default=BACKGROUND, help=f"the training beside it ({BACKGROUND!r})")
    parser.add_argument("--plan", type=Path, default=Path("plan.json"), metavar="FILE", help="the plan (plan.json)")
    parser.add_argument("--no-workflow", action="store_true", help=f"leave out {WORKFLOW}")


def run(options: argparse.Namespace) -> int:
    """Write both files; nothing that is there already is touched.

    Raises:
        ColocateError: one of them is there, or cannot be written.
    """
    members = {name: _command(name, getattr(options, name)) for name in ("foreground", "background")}
    texts = {options.plan: _filled("plan.json", members)}
    if not options.no_workflow:
        texts[WORKFLOW] = _filled("workflow.yml", {"plan": options.plan.as_posix()})
    there = [command.near(path) for path in texts if path.exists()]
    if there:
        raise ColocateError(f"init: expected to write new files, found {' and '.join(there)}; move them away")
    for path, text in texts.items():
        make_folder(path.resolve().parent)
        with command.writing(path):
            write_text(path, text)
        print(f"wrote {command.near(path)}")
    print(f"run:  colocate run {command.near(options.plan)}")
    return command.SUCCESS


def _command(name: str, text: str) -> str:
    """A command line as the list of words that a plan wants; ``python`` becomes the interpreter of colocate.

    Raises:
        ColocateError: it is no command line.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ColocateError(f"init: expected a command line for the {name}, got {text!r} ({error})") from error
    if not words:
        raise ColocateError(f"init: expected a command line for the {name}, got nothing")
    words[0] = "{python}" if words[0] in ("python", "python3") else words[0]
    return json.dumps(words, ensure_ascii=False)


def _filled(name: str, values: dict[str, str]) -> str:
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text
