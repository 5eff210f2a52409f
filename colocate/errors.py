# SPDX-License-Identifier: Apache-2.0
"""The errors of colocate.

::

    ColocateError
      PlanError           the settings are wrong                      usage error, exit code 4
      DeviceError         the GPU cannot be measured                 ERROR, or refused before the start
      TrainingError       a process could not be started or ended     ERROR
      InconclusiveError   the evidence cannot carry a verdict         ERROR

Messages read ``<place>: <what was expected>, <what was found>[; <what to do>]``: lower case, no full stop, values
with ``!r``, numbers with their units.
"""


class ColocateError(Exception):
    """Any error of colocate; the classes below say which part of the run it concerns."""


class PlanError(ColocateError):
    """Settings cannot be used. Carries every mistake found, one line each."""

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = tuple(printable(mistake) for mistake in mistakes)  # they quote what somebody wrote
        super().__init__("\n".join(self.mistakes))


class DeviceError(ColocateError):
    """The GPU could not be found, locked or read."""


class TrainingError(ColocateError):
    """A training process could not be started, or could not be ended."""


class InconclusiveError(ColocateError):
    """What was observed is not enough to say feasible or infeasible."""


class DeviceLost(DeviceError):
    """The GPU does not answer any more and will not come back by itself: reading it again is no use."""


class BalloonError(DeviceError):
    """A constrained GPU cannot be made of this one: it is too small, holds too much, or the balloon does not run."""


class ImplausibleReading(DeviceError):
    """The GPU answered a number that cannot be true, such as more memory in use than it has."""


def printable(text: str) -> str:
    """The text on one line that a terminal can show: control characters and what turns letters around are escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
