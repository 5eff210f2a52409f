"""Below a group: the peak that was seen beside the one that another meeting of the two would have."""

from colocate.report.html.elements import Html, el
from colocate.results import Row, mapping, number
from colocate.units import format_mib
from colocate.verdict import WorstCasePeak

_REPORTED_BY = {
    "allocator": "what their allocators held over time",
    "processes": "the driver's lists of processes, which miss what happens between them",
}


def section(row: Row) -> Html | None:
    """Both peaks, and which phases would have to meet.

    Nothing where no two traces were told, and nothing of a prediction: its range rests on all maxima at once already,
    and lies above what the dry run can show of them.
    """
    found = mapping(row.verdict.get("worst_case"))
    size, seen = number(found.get("peak_bytes")), number(row.verdict.get("peak_high_bytes"))
    if size is None or seen is None or row.record["basis"] == "predicted":
        return None
    worst_case = WorstCasePeak(
        size, str(found.get("foreground_phase")), str(found.get("background_phase")), "allocator"
    )
    limit = number(row.verdict.get("limit_bytes"))
    over = limit is not None and size >= limit
    seen_text, worst_case_text = (format_mib(one, beside=limit) for one in (seen, size))
    texts = [
        el("b", "Seen"),
        f" at most {seen_text}; ",
        el("b", "worst_case", class_="v-warn" if over else None),
        f" {worst_case_text}, {worst_case}, by {_REPORTED_BY.get(str(found.get('reported_by')), 'what they told')}.",
    ]
    return el("p", texts, class_="worst_case")
