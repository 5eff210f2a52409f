# SPDX-License-Identifier: Apache-2.0
"""A GPU asked with a deadline, by those who would otherwise wait for its driver as long as it likes."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from colocate.errors import DeviceLost

ANSWER_S = 15.0
"""A driver that is busy answers within some six seconds (https://github.com/netdata/netdata/issues/14522)."""

T = TypeVar("T")


class Deadline:
    """Asks in a thread of its own. A GPU that once did not answer in time is ``unresponsive`` and not asked again."""

    def __init__(self, uuid: str) -> None:
        self.unresponsive: str | None = None
        self._uuid = uuid

    def ask(self, question: Callable[[], T]) -> T:
        """The answer, or the error that came in its place.

        Raises:
            DeviceLost: there was none in time, now or earlier. The call is left behind in its thread.
            DeviceError: what the question raised.
        """
        if self.unresponsive is not None:
            raise DeviceLost(self.unresponsive)
        answer = Future[T]()

        def work() -> None:
            try:
                answer.set_result(question())
            except BaseException as error:
                answer.set_exception(error)

        # No executor: it would wait for a driver that never answers when the interpreter ends.
        threading.Thread(target=work, name="asking-the-GPU", daemon=True).start()
        if wait([answer], ANSWER_S).not_done:
            silent = f"expected an answer within {ANSWER_S:g} s, found the driver silent; see dmesg"
            self.unresponsive = f"{self._uuid}: {silent}"
            raise DeviceLost(self.unresponsive)
        return answer.result()
