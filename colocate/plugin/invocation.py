# SPDX-License-Identifier: Apache-2.0
"""Decide from the command line alone whether this session runs a plan, and which.

pytest loads this with every session of every project in whose environment colocate is installed, so it imports nothing
else of ours and reads no file but a JSON that an argument names.
"""

import json
import os
from pathlib import Path

import pytest

from colocate.plugin.options import option

CASES = Path("feasibility")
SUFFIX = ".colocate.json"

_PLAN = pytest.StashKey[Path | None]()


def is_worker(config: pytest.Config) -> bool:
    """Tell whether this process runs what an xdist controller tells it."""
    return hasattr(config, "workerinput")


def leads(config: pytest.Config) -> bool:
    """Tell whether this process decides and writes for a session that runs groups: the controller, or the only one."""
    return not is_worker(config) and not only_looks(config)


def only_looks(config: pytest.Config) -> bool:
    """Tell whether groups are listed, not run: then no GPU is needed and nothing is written."""
    names = ("collectonly", "setupplan", "showfixtures", "help", "version")
    return option(config, "resume_dry_run") or any(getattr(config.option, name, False) for name in names)


def absolute(config: pytest.Config, name: str | Path) -> Path:
    """A path from where pytest was started; symbolic links stay."""
    return Path(os.path.abspath(config.invocation_params.dir / name))  # noqa: PTH100


def home(config: pytest.Config) -> Path | None:
    """The folder of the conftest that asked for this plugin; None where pytest found the plugin by itself.

    Not pytest's rootdir: what stands after an option with a space, as in ``--plan FILE``, counts as an argument there.
    """
    for plugin in config.pluginmanager.get_plugins():
        if "colocate.plugin" in getattr(plugin, "pytest_plugins", ()) and getattr(plugin, "__file__", None):
            return Path(plugin.__file__).parent
    return None


def collects_a_plan(config: pytest.Config) -> bool:
    """Tell whether the arguments collect groups: those of a plan that they name, or the cases of a checkout."""
    if config.option.help or config.option.version:
        return False
    return plan_argument(config) is not None or collects_cases(config)


def collects_cases(config: pytest.Config) -> bool:
    """Tell whether an argument names the folder of the cases, something in it, or a folder around it."""
    project = home(config)
    if project is None:
        return False
    folder = project / CASES
    ignored = [absolute(config, name) for name in config.getoption("ignore") or ()]
    if any(folder.is_relative_to(path) for path in ignored):
        return False
    paths = [absolute(config, argument.split("::")[0]) for argument in config.args]
    return any(folder.is_relative_to(path) or path.is_relative_to(folder) for path in paths)


def plan_argument(config: pytest.Config) -> Path | None:
    """The plan that is collected as a test file: the one that an argument names, or our option where no case is named.

    Raises:
        pytest.UsageError: there are several.
    """
    if _PLAN not in config.stash:
        config.stash[_PLAN] = _plan_argument(config)
    return config.stash[_PLAN]


def _plan_argument(config: pytest.Config) -> Path | None:
    named = [absolute(config, argument.split("::")[0]) for argument in config.args]
    found = list(dict.fromkeys(path for path in named if is_plan(path)))
    asked = option(config, "plan")
    if asked is not None and not collects_cases(config) and absolute(config, asked) not in found:
        found.append(absolute(config, asked))
        explicit = config.args_source is pytest.Config.ArgsSource.ARGS
        config.args = [*(config.args if explicit else ()), str(found[-1])]
    if len(found) > 1 or (found and collects_cases(config)):
        others = [str(CASES)] if collects_cases(config) else []
        listed = ", ".join([*map(os.path.relpath, found), *others])
        raise pytest.UsageError(f"expected one plan per session, found {listed}; run them one after the other")
    return found[0] if found else None


def is_plan(path: Path) -> bool:
    """Tell whether a file that an argument names is a plan: by its name, a list of experiments in it, or our schema.

    A JSON with a mistake in it that speaks of experiments counts as one: loading it will say where the mistake is.
    """
    if path.name.endswith(SUFFIX):
        return True
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        text = path.read_bytes()
        if b'"experiments"' not in text and b"plan.schema.json" not in text:
            return False
        document = json.loads(text)
    except (ValueError, RecursionError):
        return True
    except OSError:
        return False
    return isinstance(document, dict) and (
        isinstance(document.get("experiments"), list) or str(document.get("$schema", "")).endswith("plan.schema.json")
    )
