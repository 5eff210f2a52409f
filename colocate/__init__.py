# SPDX-License-Identifier: Apache-2.0
"""colocate answers one question with evidence: can these two trainings share one GPU?

The names below are the public API; docs/how-to/python.md shows them at work. They are imported when first used, so
that ``import colocate`` is quick.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colocate.advice import Answer, Forecast, predict
    from colocate.plan import Group, Plan, load_plan
    from colocate.results import StoredRun, judge_record, read_run
    from colocate.verdict import Evidence, Outcome, Reason, ReasonCode, Verdict, judge

__version__ = "0.1.0"

# The wheel carries feasibility/, fixtures/, settings/ and workloads/ inside of this package. In a checkout they stand
# beside it, and are found there under the same names.
_checkout = Path(__file__).parent.parent
if not (Path(__file__).parent / "feasibility").is_dir() and (_checkout / "feasibility" / "test_groups.py").is_file():
    __path__.append(str(_checkout))

__all__ = [
    "Answer",
    "Evidence",
    "Forecast",
    "Group",
    "Outcome",
    "Plan",
    "Reason",
    "ReasonCode",
    "StoredRun",
    "Verdict",
    "judge",
    "judge_record",
    "load_plan",
    "predict",
    "read_run",
]

_PACKAGES = {
    "plan": ("Group", "Plan", "load_plan"),
    "verdict": ("Evidence", "Outcome", "Reason", "ReasonCode", "Verdict", "judge"),
    "results": ("StoredRun", "judge_record", "read_run"),
    "advice": ("Answer", "Forecast", "predict"),
}


def __getattr__(name: str) -> Any:
    """Import a name of the public API from its package."""
    for package, names in _PACKAGES.items():
        if name in names:
            return getattr(import_module(f"colocate.{package}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
