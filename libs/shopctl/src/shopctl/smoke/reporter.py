"""Makes calls, prints each with its duration and its response, and checks the response."""

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
_RESPONSE_LENGTH_MAX = 120


class Reporter:
    """Calls the APIs and reports each call. Raises CommandFailed at the first wrong response or past its deadline."""

    def __init__(self, shop: Shop, *, as_json: bool, within_seconds: float) -> None:
        self.shop = shop
        self.called: set[str] = set()
        self._as_json = as_json
        self._deadline = time.monotonic() + within_seconds
        self._console = console()

    def heading(self, title: str) -> None:
        """Print a heading, unless the output is JSON."""
        if not self._as_json:
            self._console.print(f"\n{title}", style="bold")

    def call(
        self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request, **expected: object
    ) -> _Response:
        """Call the method and report the result. Returns the response.

        Compares the response with `expected`; the name `a__b` means the field `b` of the field `a`. Raises
        CommandFailed if a field differs or the call fails.
        """
        name, began = self._begin(request)
        try:
            response = self.shop.call(method, request, timeout_seconds=CALL_SECONDS)
        except ShopError as error:
            self._report(name, began, f"{error.reason}: {error.message}", right=False)
            raise CommandFailed(f"{name} should succeed, but failed with {error.reason}: {error.message}") from error
        wrong = _differences(response, expected)
        self._report(name, began, short(response), right=not wrong)
        if wrong:
            raise CommandFailed(f"{name} gave a wrong response: {'; '.join(wrong)}")
        return response

    def refused(
        self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request, reason: str
    ) -> dict[str, str]:
        """Call the method and report the result. Returns the metadata of the refusal.

        Raises CommandFailed if the call succeeds or is refused with another reason.
        """
        name, began = self._begin(request)
        try:
            response = self.shop.call(method, request, timeout_seconds=CALL_SECONDS)
        except ShopError as error:
            self._report(name, began, f"{error.reason} {error.metadata()}", right=error.reason == reason)
            if error.reason == reason:
                return error.metadata()
            raise CommandFailed(
                f"{name} should be refused with {reason}, but was refused with {error.reason}"
            ) from error
        self._report(name, began, short(response), right=False)
        raise CommandFailed(f"{name} should be refused with {reason}, but succeeded")

    def eventually(
        self, method: "grpc.UnaryUnaryMultiCallable[_Request, _Response]", request: _Request, **expected: object
    ) -> _Response:
        """Repeat the call until the response is as expected, because an event takes effect some time after the call.

        Raises CommandFailed if the response is still wrong at the deadline.
        """
        name, began = self._begin(request)
        while True:
            response = self.shop.call(method, request, timeout_seconds=CALL_SECONDS)
            wrong = _differences(response, expected)
            if not wrong or time.monotonic() > self._deadline:
                break
            time.sleep(_POLL_SECONDS)
        self._report(name, began, f"awaited: {short(response)}", right=not wrong)
        if wrong:
            raise CommandFailed(f"{name} never gave the right response: {'; '.join(wrong)}")
        return response

    def expect(self, what: str, actual: object, expected: object) -> None:
        """Compare a value that is not a single field of a response."""
        if actual != expected:
            raise CommandFailed(f"{what}: {actual!r}, not {expected!r}")

    def result(self, name: str, seconds: float, response: str, *, right: bool) -> None:
        """Report a call that this class did not make, to a service other than the APIs.

        Raises CommandFailed if the response is not `right`.
        """
        self._report(name, time.monotonic() - seconds, response, right=right)
        if not right:
            raise CommandFailed(f"{name} gave a wrong response: {response}")

    def uncalled(self) -> list[str]:
        """Return the full names of the RPCs that were not called, sorted."""
        every = {f"{service.full_name}/{method.name}" for service in SERVICES for method in service.methods}
        return sorted(every - self.called)

    def _begin(self, request: Message) -> tuple[str, float]:
        if time.monotonic() > self._deadline:
            raise CommandFailed("the smoke test took too long: the system is too busy to be tested")
        (service,) = request.DESCRIPTOR.file.services_by_name.values()
        # buf lint ensures that each request is named after its method.
        method = request.DESCRIPTOR.name.removesuffix("Request")
        self.called.add(f"{service.full_name}/{method}")
        return f"{service.name}/{method}", time.monotonic()

    def _report(self, name: str, began: float, response: str, *, right: bool) -> None:
        milliseconds = (time.monotonic() - began) * 1000
        if self._as_json:
            print_json({"call": name, "milliseconds": round(milliseconds, 1), "answer": response, "right": right})
            return
        mark = ("✓", "green") if right else ("✗", "bold red")
        # A wrong response is never truncated.
        text = printable(response)
        shown = text if not right or len(text) <= _RESPONSE_LENGTH_MAX else text[: _RESPONSE_LENGTH_MAX - 1] + "…"
        line = Text.assemble(mark, f" {name:<{_NAME_WIDTH}}", (f"{milliseconds:8.1f} ms  ", "cyan"), shown)
        self._console.print(line, no_wrap=right, overflow="ellipsis")


def short(message: Message) -> str:
    """Format a message on one line, without timestamps and secrets; scalar fields come before nested messages."""
    parts = []
    for field, value in sorted(message.ListFields(), key=lambda pair: pair[0].message_type is not None):
        if isinstance(value, Timestamp):
            continue
        if field.GetOptions().debug_redact:
            parts.append(f"{field.name}=…")
        elif field.enum_type and not field.is_repeated:
            parts.append(f"{field.name}={field.enum_type.values_by_number[value].name}")
        elif not field.message_type:
            parts.append(f"{field.name}={value}")
        elif field.is_repeated:
            parts.append(f"{field.name}=[{', '.join(f'({short(one)})' for one in value)}]")
        else:
            parts.append(f"{field.name}=({short(value)})")
    return " ".join(parts) or "(empty)"


def _differences(response: Message, expected: dict[str, object]) -> list[str]:
    actual = {path: _at(response, path.split("__")) for path in expected}
    return [
        f"{path.replace('__', '.')} is {actual[path]!r}, not {value!r}"
        for path, value in expected.items()
        if actual[path] != value
    ]


def _at(value: Any, path: Sequence[str]) -> Any:
    """Return the field at the path.

    After a repeated field, the path continues in each element, and the result is a list. The name `count` returns the
    number of elements.

    Raises CommandFailed if there is no such field: then the smoke test is wrong, not the response.
    """
    for number, name in enumerate(path):
        if hasattr(value, "append"):
            return len(value) if name == "count" else [_at(one, path[number:]) for one in value]
        if name not in _fields(value):
            within = (
                value.DESCRIPTOR.name if isinstance(value, Message) else f"{'.'.join(path[:number])}, a single value"
            )
            fields = f"; it has {', '.join(_fields(value))}" if _fields(value) else ""
            raise CommandFailed(f"the smoke test expects {'.'.join(path)}, but there is no {name} in {within}{fields}")
        value = getattr(value, name)
    return list(value) if hasattr(value, "append") else value


def _fields(value: Any) -> list[str]:
    """Return the names of a message's fields; an empty list for any other value."""
    return list(value.DESCRIPTOR.fields_by_name) if isinstance(value, Message) else []
