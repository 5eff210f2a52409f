"""HTML by construction: text is escaped unless it is markup already, so that no foreign name can become a tag.

Knows nothing of runs.
"""

from collections.abc import Container, Iterable
from html import escape
from typing import TypeAlias


class Html(str):
    """Markup: put into a page as it is."""

    __slots__ = ()


Attribute: TypeAlias = str | int | float | bool | None
Part: TypeAlias = "str | int | float | Iterable[Part] | None"

_EMPTY = frozenset({"br", "circle", "col", "input", "line", "meta", "polyline", "rect", "wbr"})


def text(part: Part) -> Html:
    """A part as markup; None is nothing."""
    if part is None:
        return Html()
    if isinstance(part, Html):
        return part
    if isinstance(part, str | int | float):
        return Html(escape(str(part)))
    return Html("".join(map(text, part)))


def el(name: str, *parts: Part, **attributes: Attribute) -> Html:
    """An element. ``class_`` is the class, an underscore in a name a hyphen; None and False leave an attribute out."""
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in _EMPTY and not parts:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{text(parts)}</{name}>")


def _attribute(key: str, value: Attribute) -> str:
    if value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def scrolling_table(class_: str, heads: Iterable[str], rows: Part, numbers: Container[str] = ()) -> Html:
    """A table that scrolls where it is wider than the page; ``numbers`` are the heads of columns of numbers."""
    cells = [el("th", name, scope="col", class_="num" if name in numbers else None) for name in heads]
    return el("div", el("table", el("thead", el("tr", cells)), el("tbody", rows), class_=class_), class_="scroll")


def breakable(name: str | None) -> Html:
    """A name that may break after its underscores, where there is little room."""
    return Html(escape(name or "").replace("_", "_<wbr>"))
