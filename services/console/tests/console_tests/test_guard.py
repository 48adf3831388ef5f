"""Requests from other origins than a page of the console are refused."""

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError
from starlette.responses import PlainTextResponse
from starlette.types import Message, Scope

from console.settings import ConsoleSettings
from console.site.guard import Guard
from console.site.server import origins
from console.site.viewers import Viewers

HERE = "http://localhost:50080"


def _send(
    method: str = "GET", path: str = "/", *, sign_in: bool = False, kind: str = "http", **headers: str
) -> list[Message]:
    """Send a request through the guard to a site that answers `inside`. Returns the messages of the response."""
    settings = ConsoleSettings(sign_in=sign_in)
    guard = Guard(PlainTextResponse("inside"), Viewers(settings), origins(settings, 50080))
    sent: list[Message] = []
    scope: Scope = {
        "type": kind,
        "method": method,
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in ({"host": "localhost:50080"} | headers).items()],
    }

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return sent


def test_a_page_of_the_console_may_read_and_act() -> None:
    assert _send()[0]["status"] == 200
    assert _send("POST", origin=HERE)[0]["status"] == 200


def test_each_response_has_a_content_security_policy() -> None:
    headers = dict(_send()[0]["headers"])

    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert b"frame-ancestors 'none'" in headers[b"content-security-policy"]


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:50081", "https://localhost:50080"])
def test_a_page_of_another_site_can_neither_act_nor_open_a_web_socket(origin: str) -> None:
    assert _send("POST", origin=origin)[0]["status"] == 403
    assert _send(kind="websocket", origin=origin)[0]["type"] == "websocket.close"


def test_an_action_without_an_origin_is_refused() -> None:
    assert _send("POST")[0]["status"] == 403


def test_a_name_that_another_site_points_to_this_machine_is_refused() -> None:
    assert _send(host="evil.example:50080")[0]["status"] == 421


def test_without_a_session_only_the_sign_in_page_is_there() -> None:
    assert _send(sign_in=True)[0]["status"] == 303
    assert _send(sign_in=True, cookie="console_session=guessed")[0]["status"] == 303
    assert _send(path="/_nicegui/x.js", sign_in=True)[0]["status"] == 401
    assert _send(kind="websocket", sign_in=True, origin=HERE)[0]["type"] == "websocket.close"
    assert _send(path="/sign-in", sign_in=True)[0]["status"] == 200


def test_beyond_loopback_viewers_must_sign_in_at_a_known_address() -> None:
    faults = list(ConsoleSettings(listen_host="0.0.0.0").contradictions())
    assert [fault.partition(":")[0] for fault in faults] == ["PUBLIC_URL", "SIGN_IN"]
    opened = ConsoleSettings(listen_host="0.0.0.0", sign_in=True, public_url="https://console.example/")
    assert list(opened.contradictions()) == []
    assert origins(opened, 50080) == {"https://console.example"}


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValidationError):
        ConsoleSettings(processes="inventory-api")
    with pytest.raises(ValidationError):
        ConsoleSettings(public_url="console.example")
