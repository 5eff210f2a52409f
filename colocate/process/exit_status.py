# SPDX-License-Identifier: Apache-2.0
"""How the process of a training ended."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a training process.

    Exactly one of ``code`` and ``signal`` (a name such as ``"SIGKILL"``) is set unless the process could not be ended
    (``unkillable``). ``stopped`` says that the harness ended it on purpose, ``host_oom_kills`` how many processes the
    kernel killed for host memory in its control group meanwhile (None where that cannot be read).
    """

    code: int | None
    signal: str | None
    ended_s: float
    stopped: bool = False
    unkillable: bool = False
    host_oom_kills: int | None = None
    cpu_s: float | None = None
    max_rss_bytes: int | None = None

    @property
    def ok(self) -> bool:
        """The process ended by itself and said that all went well."""
        return self.code == 0 and not self.stopped

    def __str__(self) -> str:
        if self.unkillable:
            return "could not be ended"
        return f"exit code {self.code}" if self.signal is None else f"signal {self.signal}"
