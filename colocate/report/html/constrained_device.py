"""What the page says of a smaller GPU that a balloon made of a larger one: which, how, and what it cannot imitate."""

from collections.abc import Iterable, Iterator

from colocate.results import Row, mapping, number
from colocate.units import GIB, format_mib, plural

CANNOT = (
    "Memory runs out as on a GPU of that size. Its speed, the size of a CUDA context, the workspaces of cuBLAS and "
    "cuDNN and the choice of kernels are those of the large GPU, and a program that asks how much memory the GPU has "
    "is told the large GPU's."
)


def balloon_bytes(row: Row) -> int | None:
    """What the balloon held, its context included; None on a GPU that had none."""
    return number(mapping(row.device.get("balloon")).get("held_bytes"))


def warnings(rows: Iterable[Row]) -> Iterator[tuple[str, str, str]]:
    """One banner, as kind, head and text, where groups ran on such a GPU."""
    found = [row for row in rows if balloon_bytes(row) is not None]
    if not found:
        return
    names = dict.fromkeys(str(row.record["device_name"]) for row in found)
    yield "", "A SMALLER CARD ON A LARGER ONE:", f" {plural(len(found), 'group')} ran on {', '.join(names)}. {CANNOT}"


def caption(row: Row) -> str:
    """What a picture of the GPU's memory leaves out."""
    held = balloon_bytes(row)
    return "" if held is None else f"The balloon of {held / GIB:.1f} GiB below it is not drawn. "


def fact(row: Row) -> str:
    """The balloon as a cell."""
    held, gpu = balloon_bytes(row), mapping(row.device.get("balloon"))
    if held is None:
        return ""
    return f"{format_mib(held)} of {format_mib(number(gpu.get('gpu_bytes')))}, process {gpu.get('pid')}"
