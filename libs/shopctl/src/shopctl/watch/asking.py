"""Asks several parts of the system at the same time, so that one that is away hides nothing of the others."""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from shopctl.terminal.failures import sentence
from shopctl.watch.away import Away

_Answer = TypeVar("_Answer")

SECONDS_MAX = 20.0
"""For each. Those that are asked have limits of their own below it, except one that stands still at a wrong place."""


class _Asked(threading.Thread, Generic[_Answer]):
    """A question on a thread of its own. One that never ends does not keep the process from ending."""

    def __init__(self, name: str, question: Callable[[], _Answer]) -> None:
        super().__init__(name=f"asks {name}", daemon=True)
        self._question = question
        self.answer: _Answer | Away = Away(f"no answer within {SECONDS_MAX:g} s")

    def run(self) -> None:
        try:
            self.answer = self._question()
        except Exception as error:
            # Whatever it is, it is the answer of this part; the others are shown as they are.
            self.answer = Away(sentence(error))


def ask(questions: Mapping[str, Callable[[], _Answer]]) -> dict[str, _Answer | Away]:
    """The answer to each, or why there is none."""
    asked = {name: _Asked(name, question) for name, question in questions.items()}
    for thread in asked.values():
        thread.start()
    deadline = time.monotonic() + SECONDS_MAX
    for thread in asked.values():
        thread.join(max(0.0, deadline - time.monotonic()))
    return {name: thread.answer for name, thread in asked.items()}
