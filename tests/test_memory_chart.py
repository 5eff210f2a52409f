import json
import re
import xml.etree.ElementTree as ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from colocate.report.html.memory_chart import NUM_POINTS, Drawing, Member, curve, downsampled
from colocate.report.html.templating import macro
from colocate.units import MIB
from colocate.verdict.evidence import Sample

LIMIT = 7500 * MIB


@settings(deadline=None)
@given(st.integers(1, 2000), st.dictionaries(st.integers(0, 1999), st.integers(0, 2**33), max_size=20))
def test_downsampling_keeps_peak_and_order_and_is_never_longer_than_asked(length, spikes):
    readings = [spikes.get(place, 2**30 + place % 7) for place in range(length)]
    samples = [Sample(float(place), used_bytes) for place, used_bytes in enumerate(readings)]
    few = downsampled(samples)
    assert len(few) <= NUM_POINTS
    assert max(sample.used_bytes for sample in few) == max(readings)
    assert few == sorted(few)
    assert set(few) <= set(samples)


def drawn(samples, members, title=""):
    """The picture as markup."""
    return str(macro("charts.html", "memory")(Drawing(samples, LIMIT, members).facts(title)))


def points(text):
    return [tuple(map(float, point.split(","))) for point in text.split()]


def test_a_peak_of_one_sample_among_thousands_is_drawn():
    samples = [Sample(place / 20, 1000 * MIB) for place in range(20_000)]
    samples[7777] = Sample(7777 / 20, 7400 * MIB)
    picture = drawn(samples, {}, "group01")
    assert "peak 7400 MiB at 388.9 s" in picture
    assert len(picture) < 16_000, "a page has a dozen of them"


def test_the_picture_is_sound_xml_says_what_it_shows_and_keeps_names_as_text():
    samples = [Sample(0.0, 230 * MIB), Sample(10.0, 8000 * MIB), Sample(20.0, 230 * MIB)]
    picture = drawn(samples, {"<i>fore": Member(((1.0, 15.0),))}, '"><script>')
    svg = re.search(r"<svg.*?</svg>", picture, re.DOTALL)[0]
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    said = '"><script>: memory of the GPU over 20 s, peak 8000 MiB at 10.0 s, limit 7500 MiB'
    assert root.get("aria-label") == said
    assert "<script" not in picture
    assert "<i>" not in picture
    assert {"used", "limit", "peak"} <= {element.get("class") for element in root.iter()}


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.integers(0, 2**34)), min_size=1, max_size=100),
    st.lists(st.tuples(st.floats(0, 2e5), st.integers(0, 2**35)), max_size=20),
)
def test_every_point_lies_inside_the_picture(readings, held):
    members = {"background": Member(((1.0, 5.0),), held=tuple(sorted(held)))}
    found = Drawing([Sample(*reading) for reading in sorted(readings)], LIMIT, members, 200 * MIB).facts()
    for text in (found["line"], found["area"], *(area for _, area in found["stack"])):
        assert all(0 <= x <= 1000 and 0 <= y <= 200 for x, y in points(text))


def test_what_the_members_held_is_stacked_on_the_baseline_and_can_be_read_at_every_moment():
    samples = [Sample(float(second), 230 * MIB) for second in range(21)]
    members = {
        "foreground": Member(held=((4.0, 1000 * MIB), (8.0, 0))),
        "background": Member(held=((2.0, 500 * MIB), (20.0, 0))),
    }
    found = Drawing(samples, LIMIT, members, 200 * MIB).facts()
    assert [kind for kind, _ in found["stack"]] == ["baseline", "background", "foreground"]
    top = LIMIT * 1.08
    highest = [min(y for _, y in points(area)) for _, area in found["stack"]]
    expected = [200 * (1 - size * MIB / top) for size in (200, 700, 1700)]
    assert all(abs(one - other) < 0.1 for one, other in zip(highest, expected, strict=True))
    series = json.loads(found["series"])
    assert series["foreground"] == [[4.0, 1000.0], [8.0, 0.0]]
    assert series["gpu"][0] == [0.0, 230.0]
    assert "foreground" not in json.loads(Drawing(samples, LIMIT, {}).facts()["series"]), "nobody told: no number"


def test_phases_differ_in_height_and_restarts_are_marked():
    samples = [Sample(0.0, 230 * MIB), Sample(20.0, 800 * MIB)]
    background = Member(((1.0, 5.0), (7.0, 20.0)), (("train", (2.0, 4.0)), ("<odd>", (8.0, 9.0))))
    members = {"foreground": Member(((3.0, 9.0),), (("evaluate", (4.0, 6.0)),)), "background": background}
    picture = drawn(samples, members)
    heights = dict(re.findall(r'height="([\d.]+)"><title>\w+: (train|evaluate)', picture))
    assert {name: float(height) for height, name in heights.items()} == {"train": 12.0, "evaluate": 6.6}
    assert "background started again at 7.0 s" in picture
    assert "&lt;odd&gt; from 8.0 s to 9.0 s" in picture


def test_a_slow_reading_has_its_highest_value_in_words():
    power = curve("power", "W", [(float(second), 100.0 + second) for second in range(50)])
    assert 'aria-label="group01: power, at most 149 W"' in str(macro("charts.html", "vitals")([power], "group01"))
