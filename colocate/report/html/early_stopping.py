"""What the page says of groups whose foreground was ended early because nothing could change the verdict any more."""

from collections.abc import Iterable, Iterator

from colocate.results import Row, is_early
from colocate.units import plural


def warnings(rows: Iterable[Row]) -> Iterator[tuple[str, str, str]]:
    """One banner, as kind, head and text, where groups were decided early."""
    found = [row.group for row in rows if row.evidence.get("decided_early") or is_early(row.record)]
    if not found:
        return
    unfinished = "Their foregrounds did not come to their own end, and a peak that comes later was not seen."
    text = f" {plural(len(found), 'group')} ({', '.join(found)}). {unfinished} Run without --until-decided to see it."
    yield "", "DECIDED EARLY:", text
