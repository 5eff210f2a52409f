"""The errors of colocate.

::

    ColocateError
      PlanError           the settings are wrong                      usage error, exit code 4
      DeviceError         the card cannot be measured                 ERROR, or refused before the start
      TrainingError       a process could not be started or ended     ERROR
      InconclusiveError   the evidence cannot carry a verdict         ERROR

Messages read ``<place>: <what was expected>, <what was found>[; <what to do>]``: lower case, no full stop, values
with ``!r``, numbers with their units.
"""

from colocate.documents import printable


class ColocateError(Exception):
    """Any error of colocate; the classes below say which part of the run it concerns."""


class PlanError(ColocateError):
    """Settings cannot be used. Carries every mistake found, one line each."""

    def __init__(self, *mistakes: str) -> None:
        self.mistakes = tuple(printable(mistake) for mistake in mistakes)  # they quote what somebody wrote
        super().__init__("\n".join(self.mistakes))


class DeviceError(ColocateError):
    """The card could not be found, locked or read."""


class TrainingError(ColocateError):
    """A training process could not be started, or could not be ended."""


class InconclusiveError(ColocateError):
    """What was observed is not enough to say feasible or infeasible."""
