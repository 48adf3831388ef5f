"""Tells a story of calls as it happens, each with its answer and its time, and checks the answers."""

import time
from collections.abc import Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.text import Text

from shop_common.errors import ShopError
from shopctl.client import SERVICES, Shop
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import console, print_json, printable

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)

CALL_SECONDS = 5
_POLL_SECONDS = 0.1
_NAME_WIDTH = 49
_ANSWER_LENGTH_MAX = 120


class Narrator:
    """One story. It ends, with CommandFailed, at the first answer that is wrong, or when its time is up."""

    def __init__(self, shop: Shop, *, as_json: bool, within_seconds: float) -> None:
        self.shop = shop
        self.called: set[str] = set()
        self._as_json = as_json
        self._deadline = time.monotonic() + within_seconds
        self._console = console()

    def chapter(self, title: str) -> None:
        """A line between calls, for people."""
        if not self._as_json:
            self._console.print(f"\n{title}", style="bold")

    def call(
        self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request, **expected: object
    ) -> _Response:
        """Call, tell of it, and hold the answer's fields against those expected; `a__b` is field b of field a."""
        name, began = self._begin(request)
        try:
            answer = self.shop.call(method, request, timeout_seconds=CALL_SECONDS)
        except ShopError as error:
            self._tell(name, began, f"{error.reason}: {error.message}", right=False)
            raise CommandFailed(f"{name} should succeed, but was answered {error.reason}: {error.message}") from error
        wrong = _differences(answer, expected)
        self._tell(name, began, short(answer), right=not wrong)
        if wrong:
            raise CommandFailed(f"{name} gave a wrong answer: {'; '.join(wrong)}")
        return answer

    def refused(
        self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request, reason: str
    ) -> dict[str, str]:
        """Call, and expect a refusal for that reason; its metadata."""
        name, began = self._begin(request)
        try:
            answer = self.shop.call(method, request, timeout_seconds=CALL_SECONDS)
        except ShopError as error:
            self._tell(name, began, f"{error.reason} {error.metadata()}", right=error.reason == reason)
            if error.reason == reason:
                return error.metadata()
            raise CommandFailed(f"{name} should be refused with {reason}, but was with {error.reason}") from error
        self._tell(name, began, short(answer), right=False)
        raise CommandFailed(f"{name} should be refused with {reason}, but succeeded")

    def eventually(
        self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request, **expected: object
    ) -> _Response:
        """Call again and again until the answer is as expected: what follows from events takes a moment."""
        name, began = self._begin(request)
        while True:
            answer = self.shop.call(method, request, timeout_seconds=CALL_SECONDS)
            wrong = _differences(answer, expected)
            if not wrong or time.monotonic() > self._deadline:
                break
            time.sleep(_POLL_SECONDS)
        self._tell(name, began, f"awaited: {short(answer)}", right=not wrong)
        if wrong:
            raise CommandFailed(f"{name} never gave the right answer: {'; '.join(wrong)}")
        return answer

    def expect(self, what: str, found: object, wanted: object) -> None:
        """Compare what no single field of an answer says."""
        if found != wanted:
            raise CommandFailed(f"{what}: {found!r}, not {wanted!r}")

    def done(self, name: str, seconds: float, answer: str, *, right: bool) -> None:
        """Tell of what is no RPC of the shop."""
        self._tell(name, time.monotonic() - seconds, answer, right=right)
        if not right:
            raise CommandFailed(f"{name} gave a wrong answer: {answer}")

    def uncalled(self) -> list[str]:
        """The RPCs, of all that there are, that the story has left out."""
        every = {f"{service.full_name}/{method.name}" for service in SERVICES for method in service.methods}
        return sorted(every - self.called)

    def _begin(self, request: Message) -> tuple[str, float]:
        if time.monotonic() > self._deadline:
            raise CommandFailed("the story took too long; the system is too busy to be judged")
        (service,) = request.DESCRIPTOR.file.services_by_name.values()
        # A request is named for its method; buf lint holds the protos to that.
        method = request.DESCRIPTOR.name.removesuffix("Request")
        self.called.add(f"{service.full_name}/{method}")
        return f"{service.name}/{method}", time.monotonic()

    def _tell(self, name: str, began: float, answer: str, *, right: bool) -> None:
        milliseconds = (time.monotonic() - began) * 1000
        if self._as_json:
            print_json({"call": name, "milliseconds": round(milliseconds, 1), "answer": answer, "right": right})
            return
        mark = ("✓", "green") if right else ("✗", "bold red")
        # A wrong answer is shown whole.
        answer = printable(answer)
        shown = answer if not right or len(answer) <= _ANSWER_LENGTH_MAX else answer[: _ANSWER_LENGTH_MAX - 1] + "…"
        line = Text.assemble(mark, f" {name:<{_NAME_WIDTH}}", (f"{milliseconds:8.1f} ms  ", "cyan"), shown)
        self._console.print(line, no_wrap=right, overflow="ellipsis")


def short(message: Message) -> str:
    """A message in a line, without times; its own fields before those of its parts."""
    parts = []
    for field, value in sorted(message.ListFields(), key=lambda pair: pair[0].message_type is not None):
        if isinstance(value, Timestamp):
            continue
        if field.enum_type and not field.is_repeated:
            parts.append(f"{field.name}={field.enum_type.values_by_number[value].name}")
        elif not field.message_type:
            parts.append(f"{field.name}={value}")
        elif field.is_repeated:
            parts.append(f"{field.name}=[{', '.join(f'({short(one)})' for one in value)}]")
        else:
            parts.append(f"{field.name}=({short(value)})")
    return " ".join(parts) or "(empty)"


def _differences(answer: Message, expected: dict[str, object]) -> list[str]:
    found = {path: _at(answer, path.split("__")) for path in expected}
    return [
        f"{path.replace('__', '.')} is {found[path]!r}, not {wanted!r}"
        for path, wanted in expected.items()
        if found[path] != wanted
    ]


def _at(value: Any, path: Sequence[str]) -> Any:
    """The field at the path; of a repeated one the list of that field of each, or its count.

    Raises CommandFailed when there is no such field: the story is wrong then, not the answer.
    """
    for number, name in enumerate(path):
        if hasattr(value, "append"):
            return len(value) if name == "count" else [_at(one, path[number:]) for one in value]
        if name not in _fields(value):
            within = (
                value.DESCRIPTOR.name if isinstance(value, Message) else f"{'.'.join(path[:number])}, a single value"
            )
            fields = f"; it has {', '.join(_fields(value))}" if _fields(value) else ""
            raise CommandFailed(f"the story expects {'.'.join(path)}, but there is no {name} in {within}{fields}")
        value = getattr(value, name)
    return list(value) if hasattr(value, "append") else value


def _fields(value: Any) -> list[str]:
    """The names of a message's fields; none of what is no message."""
    return list(value.DESCRIPTOR.fields_by_name) if isinstance(value, Message) else []
