"""The GPU's memory over time as an inline SVG of a few kilobytes; colours come from the page's stylesheet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from math import ceil

from colocate.units import MIB, format_mib
from colocate.verdict import Interval, Sample

NUM_POINTS = 300

_WIDTH, _HEIGHT = 760, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 12, 10, 24
_ROW = 13  # height of a bar that shows when a member ran


def downsampled(samples: Sequence[Sample], num_points: int = NUM_POINTS) -> list[Sample]:
    """At most so many samples that look the same: the lowest and the highest of every stretch, in order of time.

    The peak is the highest of its stretch, so it is always among them.
    """
    if len(samples) <= num_points:
        return list(samples)
    width = ceil(len(samples) / (num_points // 2))
    stretches = (samples[start : start + width] for start in range(0, len(samples), width))
    return [sample for stretch in stretches for sample in _extremes(stretch)]


def _extremes(stretch: Sequence[Sample]) -> list[Sample]:
    low = min(stretch, key=lambda sample: sample.used_bytes)
    high = max(stretch, key=lambda sample: sample.used_bytes)
    return sorted({low, high})


@dataclass(frozen=True)
class Member:
    """When one training ran, when each of its processes began, and its phases; times in seconds."""

    process_runs: tuple[Interval, ...] = ()
    phases: tuple[tuple[str, Interval], ...] = ()

    @property
    def end_s(self) -> float:
        """When it was last seen."""
        return max((end for _, end in (*self.process_runs, *(span for _, span in self.phases))), default=0.0)


def timeline(
    samples: Sequence[Sample],
    limit_bytes: int,
    members: Mapping[str, Member] | None = None,
    title: str = "",
    num_points: int = NUM_POINTS,
) -> str:
    """An SVG of the samples with the limit and the peak; below it, when each member ran and in which phase.

    The foreground's phases are shaded behind the curve. Empty without samples: nothing is drawn that was not read.
    """
    if not samples:
        return ""
    return "".join(_Drawing(samples, limit_bytes, members or {}, num_points).parts(title))


@dataclass(frozen=True)
class Curve:
    """One slow reading over time, such as power in watts."""

    name: str
    unit: str
    points: tuple[tuple[float, float], ...] = field(default=())


def curves(found: Sequence[Curve], title: str = "") -> str:
    """One small SVG per curve that has points, on a scale from 0 to its highest value."""
    return "".join(_curve(curve, title) for curve in found if len(curve.points) > 1)


def _curve(curve: Curve, title: str) -> str:
    points = curve.points[:: max(1, len(curve.points) // NUM_POINTS)]
    start, end = points[0][0], max(points[-1][0], points[0][0] + 0.001)
    top = max(max(value for _, value in points) * 1.1, 1.0)
    highest = max(value for _, value in curve.points)
    said = escape(f"{title}: {curve.name}, at most {highest:.0f} {curve.unit}")
    height = 64
    across, up = (_WIDTH - _LEFT - _RIGHT) / (end - start), (height - 18) / top
    path = " ".join(f"{_LEFT + across * (at - start):.1f},{height - 6 - up * value:.1f}" for at, value in points)
    return (
        f'<svg class="timeline curve" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{said}">'
        f'<text x="{_LEFT - 6}" y="14" text-anchor="end">{escape(curve.name)}</text>'
        f'<text x="{_LEFT - 6}" y="28" text-anchor="end">max {highest:.0f} {escape(curve.unit)}</text>'
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{height - 6}" y2="{height - 6}"/>'
        f'<polyline class="used" points="{path}"/></svg>'
    )


class _Drawing:
    """Scales and parts of one picture."""

    def __init__(
        self, samples: Sequence[Sample], limit_bytes: int, members: Mapping[str, Member], num_points: int
    ) -> None:
        self.samples = downsampled(samples, num_points)
        self.peak = max(samples, key=lambda sample: sample.used_bytes)
        self.limit_bytes = limit_bytes
        self.members = members
        self.end_s = max(samples[-1].elapsed_s, *(member.end_s for member in members.values()), 0.001)
        self.top_bytes = max(limit_bytes, self.peak.used_bytes) * 1.08

    @property
    def peak_text(self) -> str:
        return format_mib(self.peak.used_bytes, beside=self.limit_bytes)

    def x(self, elapsed_s: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * max(0.0, elapsed_s) / self.end_s, 1)

    def y(self, used_bytes: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * used_bytes / self.top_bytes, 1)

    def parts(self, title: str) -> Iterator[str]:
        height = _HEIGHT + _ROW * len(self.members)
        said = f"{title}: memory of the GPU over {self.end_s:.0f} s, peak {self.peak_text}, "
        said += f"limit {format_mib(self.limit_bytes)}"
        yield f'<svg class="timeline" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(said)}">'
        yield from self._shades()
        yield from self._axes()
        points = " ".join(f"{self.x(sample.elapsed_s)},{self.y(sample.used_bytes)}" for sample in self.samples)
        yield f'<polyline class="used" points="{points}"/>'
        yield from self._limit()
        yield from self._peak()
        yield from self._bars()
        yield "</svg>"

    def _shades(self) -> Iterator[str]:
        """The foreground's phases behind the curve."""
        for phase, (start, end) in self.members.get("foreground", Member()).phases:
            place = (
                f'x="{self.x(start)}" y="{_TOP}" width="{self._width(start, end)}" height="{_HEIGHT - _TOP - _BOTTOM}"'
            )
            yield f'<rect class="shade {phase_class(phase)}" {place}/>'

    def _width(self, start: float, end: float) -> float:
        return max(1.0, round(self.x(end) - self.x(start), 1))

    def _axes(self) -> Iterator[str]:
        for used_bytes in _ticks(self.top_bytes, step=_size_step(self.top_bytes)):
            y = self.y(used_bytes)
            yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
            yield f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{format_mib(round(used_bytes))}</text>'
        for elapsed_s in _ticks(self.end_s, step=_time_step_s(self.end_s)):
            text = f"{elapsed_s:g} s" if self.end_s < 180 else f"{elapsed_s / 60:g} min"
            yield f'<text x="{self.x(elapsed_s)}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{text}</text>'

    def _limit(self) -> Iterator[str]:
        y = self.y(self.limit_bytes)
        yield f'<line class="limit" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        text = f"limit {format_mib(self.limit_bytes)}"
        yield f'<text class="limit" x="{_LEFT + 4}" y="{y - 4}">{text}</text>'

    def _peak(self) -> Iterator[str]:
        x, y = self.x(self.peak.elapsed_s), self.y(self.peak.used_bytes)
        text = f"{self.peak_text} at {self.peak.elapsed_s:.1f} s"
        yield f'<circle class="peak" cx="{x}" cy="{y}" r="3.5"><title>peak {text}</title></circle>'
        anchor = "end" if x > _WIDTH / 2 else "start"  # never over the edge
        yield f'<text class="peak" x="{x}" y="{self._beside(y)}" text-anchor="{anchor}">peak {text}</text>'

    def _beside(self, y: float) -> float:
        """Where the peak's text stands: above the line, or below it and the limit where that is near."""
        limit_y = self.y(self.limit_bytes)
        return y - 8 if y - limit_y > 24 else round(max(y, limit_y) + 20, 1)

    def _bars(self) -> Iterator[str]:
        for row, (name, member) in enumerate(self.members.items()):
            y = _HEIGHT + row * _ROW
            yield f'<text x="{_LEFT - 6}" y="{y + 8}" text-anchor="end">{escape(name[:10])}</text>'
            for start, end in member.process_runs:
                said = f"{name} ran from {start:.1f} s to {end:.1f} s"
                yield self._bar("span", said, y, start, end)
            for phase, (start, end) in member.phases:
                said = f"{name}: {phase} from {start:.1f} s to {end:.1f} s"
                yield self._bar(f"phase {phase_class(phase)}", said, y, start, end)
            yield from self._restart_policy(name, member, y)

    def _bar(self, kind: str, said: str, y: float, start: float, end: float) -> str:
        place = f'x="{self.x(start)}" y="{y}" width="{self._width(start, end)}" height="{_ROW - 5}"'
        return f'<rect class="{kind}" {place} rx="2"><title>{escape(said)}</title></rect>'

    def _restart_policy(self, name: str, member: Member, y: float) -> Iterator[str]:
        """A triangle wherever a training was started again."""
        for start, _ in member.process_runs[1:]:
            x = self.x(start)
            said = escape(f"{name} started again at {start:.1f} s")
            yield f'<path class="restart" d="M{x} {y - 2}l5 11h-10z"><title>{said}</title></path>'


def phase_class(phase: str) -> str:
    """The class that colours a phase."""
    return f"phase-{phase if phase in ('train', 'evaluate', 'save') else 'other'}"


def _ticks(end: float, step: float) -> Iterator[float]:
    value = 0.0
    while value <= end:
        yield value
        value += step


def _size_step(top_bytes: float) -> float:
    """2000 MiB, or a multiple of it on GPUs so large that the lines would lie too close."""
    return 2000 * MIB * max(1, ceil(top_bytes / (12 * 2000 * MIB)))


def _time_step_s(end_s: float) -> float:
    """A round number of seconds, or of minutes, that makes about six ticks."""
    steps = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
    return next((step for step in steps if end_s / step <= 7), end_s / 6)
