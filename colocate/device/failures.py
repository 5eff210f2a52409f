"""The failures of a card that somebody acts on; all others are a plain `DeviceError`. Knows no kind of card."""

from colocate.errors import DeviceError


class CardLost(DeviceError):
    """The card does not answer any more and will not come back by itself: reading it again is no use."""


class NoBallast(DeviceError):
    """A small card cannot be made of this one: it is too small, holds too much, or the ballast does not run."""


class ImplausibleReading(DeviceError):
    """The card answered a number that cannot be true, such as more memory in use than it has."""
