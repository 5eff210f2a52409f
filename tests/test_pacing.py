"""The two trainings of a group on the virtual GPU wait for each other."""

import json

import pytest

from colocate.probe.virtual_gpu import pacing


def test_a_foreground_waits_at_its_second_step_until_the_background_has_made_two(tmp_path):
    """A background that evaluated for as long as the foreground trained used to make the group INCONCLUSIVE."""
    record = tmp_path / "7.json"

    def tell(steps):
        record.write_text(json.dumps({"optimizer_steps": steps}))

    waited = []

    def sleep(seconds):
        waited.append(seconds)
        tell(5 + len(waited) // 3)

    tell(5)
    pace = pacing.Pace(tmp_path, 60.0, sleep)
    pace.step()
    assert not waited, "the first step opens the time that both must share"
    pace.step()
    assert len(waited) == 6
    pace.step()
    assert len(waited) == 6, "once is enough"

    hanging = pacing.Pace(tmp_path, -1.0, sleep)
    hanging.step()
    hanging.step()
    assert len(waited) == 6, "a background that makes none is not waited for any longer"

    inference = pacing.Pace(tmp_path / "no optimizer", 60.0, sleep)
    inference.step()
    inference.step()
    assert len(waited) == 6


def test_a_record_that_cannot_be_read_counts_no_step(tmp_path):
    (tmp_path / "7.json").write_text('{"optimizer_steps": 3}')
    (tmp_path / "8.json").write_text("{")
    (tmp_path / "9.json").write_text("[]")
    assert pacing.steps_of(tmp_path) == 3


def test_a_background_whose_peak_is_known_makes_a_step_for_every_step_of_its_foreground(tmp_path):
    """Looping at full speed it used to take half of the processors from the foreground."""
    ready, foreground = tmp_path / "ready", tmp_path / "7.json"
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 3:
            foreground.write_text('{"optimizer_steps": 1}')
        if len(waited) == 5:
            ready.write_text("the foreground has ended")

    rest = pacing.Rest(ready, tmp_path, 60.0, sleep)
    rest.step()
    assert not waited, "its peak is not known yet"
    ready.touch()
    rest.step()
    assert len(waited) == 3
    rest.step()
    assert len(waited) == 5, "the foreground has ended, and the step at its end is wanted"

    ready.write_text("")
    pacing.Rest(ready, tmp_path / "no optimizer", -1.0, sleep).step()
    assert len(waited) == 5, "a foreground that makes none is not waited for any longer"


def test_two_steps_of_a_foreground_seen_at_once_let_the_background_make_the_two_it_waits_for(tmp_path):
    """A foreground with two quick steps waited for the background, and that for a third one: ten seconds, sometimes."""
    (tmp_path / "ready").touch()
    foreground = tmp_path / "7.json"

    def stuck(seconds):
        raise AssertionError("it waits")

    rest = pacing.Rest(tmp_path / "ready", tmp_path, 60.0, stuck)
    for steps in (2, 1000):
        foreground.write_text(json.dumps({"optimizer_steps": steps}))
        for _ in range(pacing.STEPS):
            rest.step()
        with pytest.raises(AssertionError, match="it waits"):
            rest.step()
