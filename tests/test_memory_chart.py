import xml.etree.ElementTree as ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.report.html.memory_chart import NUM_POINTS, Curve, Member, curves, downsampled, timeline
from colocate.units import MIB
from colocate.verdict.evidence import Sample

LIMIT = 7500 * MIB


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**33), min_size=1, max_size=2000))
def test_downsampling_keeps_peak_and_order_and_is_never_longer_than_asked(readings):
    samples = [Sample(float(place), used_bytes) for place, used_bytes in enumerate(readings)]
    few = downsampled(samples)
    assert len(few) <= NUM_POINTS
    assert max(sample.used_bytes for sample in few) == max(readings)
    assert few == sorted(few)
    assert set(few) <= set(samples)


def test_a_peak_of_one_sample_among_thousands_is_drawn():
    samples = [Sample(place / 20, 1000 * MIB) for place in range(20_000)]
    samples[7777] = Sample(7777 / 20, 7400 * MIB)
    picture = timeline(samples, LIMIT, title="group01")
    assert "peak 7400 MiB at 388.9 s" in picture
    assert len(picture) < 8000, "a page has a dozen of them"


def test_the_picture_is_sound_xml_says_what_it_shows_and_keeps_names_as_text():
    samples = [Sample(0.0, 230 * MIB), Sample(10.0, 8000 * MIB), Sample(20.0, 230 * MIB)]
    picture = timeline(samples, LIMIT, {"<i>fore": Member(((1.0, 15.0),))}, title='"><script>')
    root = ElementTree.fromstring(picture)
    assert root.get("role") == "img"
    assert root.get("aria-label") == '"><script>: memory of the GPU over 20 s, peak 8000 MiB, limit 7500 MiB'
    assert "<script" not in picture
    assert "<i>" not in picture
    classes = [element.get("class") for element in root.iter()]
    assert {"used", "limit", "peak", "span"} <= set(classes)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e5), st.integers(0, 2**34)), min_size=1, max_size=400))
def test_every_point_lies_inside_the_picture(readings):
    samples = [Sample(*reading) for reading in sorted(readings)]
    root = ElementTree.fromstring(timeline(samples, LIMIT))
    line = next(element for element in root.iter() if element.get("class") == "used")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    assert all(0 <= x <= 760 and 0 <= y <= 200 for x, y in points)


def test_without_samples_nothing_is_drawn():
    assert timeline([], LIMIT) == ""


def test_phases_are_shaded_and_restarts_marked():
    samples = [Sample(0.0, 230 * MIB), Sample(20.0, 800 * MIB)]
    background = Member(((1.0, 5.0), (7.0, 20.0)), (("train", (2.0, 4.0)), ("<odd>", (8.0, 9.0))))
    members = {"foreground": Member(((3.0, 9.0),), (("evaluate", (4.0, 6.0)),)), "background": background}
    picture = timeline(samples, LIMIT, members)
    ElementTree.fromstring(picture)
    assert 'class="shade phase-evaluate"' in picture
    assert "background started again at 7.0 s" in picture
    assert "&lt;odd&gt; from 8.0 s to 9.0 s" in picture


def test_a_slow_reading_has_its_highest_value_in_words_and_none_is_no_picture():
    power = Curve("power", "W", tuple((float(second), 100.0 + second) for second in range(50)))
    picture = curves([power, Curve("busy", "%")], "group01")
    root = ElementTree.fromstring(picture)
    assert root.get("aria-label") == "group01: power, at most 149 W"
    assert curves([]) == ""
