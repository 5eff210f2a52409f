# SPDX-License-Identifier: Apache-2.0
"""Render the page's templates: text is escaped unless a template made it, so that no foreign name can become a tag.

Knows nothing of runs.
"""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from colocate.results import colour, headroom_text, peak_text
from colocate.units import duration_text, energy_text, format_mib, mib_text, plural, to_mib
from colocate.verdict import Outcome

HERE = Path(__file__).parent

# Verdicts are told apart without their colours too.
SIGNS = {Outcome.FEASIBLE.value: "✓", Outcome.INFEASIBLE.value: "✗"}


def breakable(name: str | None) -> Markup:
    """Let a name break after its underscores, where there is little room."""
    return escape(name or "").replace("_", Markup("_<wbr>"))


def sign_of(outcome: str) -> str:
    """Return the sign of an outcome, which tells it where colours do not."""
    return SIGNS.get(outcome, "?")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (colour, headroom_text, peak_text, duration_text, energy_text, format_mib, mib_text, plural, breakable)
    environment.filters |= {word.__name__: word for word in words}
    environment.globals |= {"sign_of": sign_of, "to_mib": to_mib}
    return environment


def render(template: str, **facts: Any) -> Markup:
    """Render a whole template."""
    return Markup(_environment().get_template(template).render(**facts))


def macro(template: str, name: str, **facts: Any) -> Any:
    """Return one macro of a template; ``facts`` are what it takes from its surroundings."""
    found = _environment().get_template(template)
    return getattr(found.make_module(facts) if facts else found.module, name)


def asset(name: str) -> Markup:
    """Read a stylesheet or a script of this package; it is put into the page as it is."""
    return Markup((HERE / name).read_text(encoding="utf-8"))
