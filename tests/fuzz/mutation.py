"""Changes to JSON that stay JSON, so that a fuzzer gets past the parser: values swapped, moved, doubled, made strange.

Every line of a file of JSON lines is a document of its own.
"""

import json
import random
from typing import Any

STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "*", ".", "..", "/", "a" * 300, "7500MB", "-1MB", "1e999MB"),
    *(
        "\u0000",
        "\u202e",
        "\ud800",
        "\x1b[2J",
        "\n",
        "<script>",
        "{python}",
        "{model}",
        "COLOCATE_COOKIE",
        "(",
        "((a+)+)+$",
    ),
    *([], {}, [[]], {"": {}}, [None], {"*": None}, ["a", "b"], [0] * 40),
)


def mutated(data: bytes, seed: int) -> bytes:
    """A document near this one; bytes that hold none come back as they are."""
    chance = random.Random(seed)
    lines = data.split(b"\n") if data.count(b"\n") and _parsed(data) is None else [data]
    place = chance.randrange(len(lines))
    document = _parsed(lines[place])
    if document is None:
        return data
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        document = _changed(document[0], chance), None
    lines[place] = _written(document[0], chance)
    if len(lines) > 1 and chance.random() < 0.2:
        lines.insert(chance.randrange(len(lines)), chance.choice(lines))
    return b"\n".join(lines)


def _parsed(data: bytes) -> tuple[Any, None] | None:
    try:
        return json.loads(data), None
    except (ValueError, RecursionError):
        return None


def _written(document: Any, chance: random.Random) -> bytes:
    try:
        text = json.dumps(document, ensure_ascii=chance.random() < 0.5)
    except (ValueError, RecursionError):
        return b"null"
    return text.encode("utf-8", "surrogatepass")


def _changed(document: Any, chance: random.Random) -> Any:
    places = list(_places(document))
    if not places:
        return chance.choice(STRANGE)
    container, key = chance.choice(places)
    match chance.randrange(7):
        case 0:
            del container[key]
        case 1:
            other, place = chance.choice(places)
            container[key] = other[place]
        case 2 if isinstance(container, dict):
            container[str(chance.choice(STRANGE))] = container[key]
        case 3 if isinstance(container, dict):
            container[chance.choice(places)[1] if chance.random() < 0.5 else "x"] = container.pop(key)
        case 4 if isinstance(container, list):
            container.insert(key, container[key])
        case 5:
            container[key] = _near(container[key], chance)
        case _:
            container[key] = chance.choice(STRANGE)
    return document


def _near(value: Any, chance: random.Random) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return chance.choice((-value, value + 1, value * 2, value / 3 if abs(value) < 2**60 else 0, str(value), 10**9))
    if isinstance(value, str):
        cut = chance.randrange(len(value) + 1)
        return chance.choice((value[:cut], value + value, value[cut:] + str(chance.choice(STRANGE))[:9], [value]))
    return [value] if isinstance(value, dict) else {"x": value}


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every place of a document as its container and key; the nearest 2000."""
    waiting, found = [document], []
    while waiting and len(found) < 2000:
        container = waiting.pop(0)
        keys = (
            list(container)
            if isinstance(container, dict)
            else range(len(container))
            if isinstance(container, list)
            else ()
        )
        for key in keys:
            found.append((container, key))
            waiting.append(container[key])
    return found
