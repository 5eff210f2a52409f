"""Collect in a few words what a test saw of a fault; conftest.py puts it into docs/reliability.md."""

SEEN: list[str] = []


def note(text: object) -> None:
    """Remember an outcome of the test that runs now."""
    if str(text) not in SEEN:
        SEEN.append(str(text))


def note_verdict(verdict: object) -> None:
    """Remember a verdict by its outcome and codes."""
    codes = ", ".join(verdict.codes)  # type: ignore[attr-defined]
    note(f"{verdict.outcome}" + (f" ({codes})" if codes else ""))  # type: ignore[attr-defined]
