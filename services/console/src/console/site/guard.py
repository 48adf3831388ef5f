"""Protects the site from pages of other sites, and from viewers who have not signed in.

A page of another site can send requests to this one from the browser of a viewer, and can even open a web socket. So
each request must name an address of this site as its host, and each request that can act must come from a page of this
site. The check of the host also defeats DNS rebinding.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console.site.viewers import Viewers

SESSION_COOKIE = "console_session"
SIGN_IN_PATH = "/sign-in"

# NiceGUI compiles its templates in the browser, which needs 'unsafe-inline' and 'unsafe-eval'. The policy forbids
# everything else, above all loading from other sites and sending to them.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:; object-src 'none'; frame-ancestors 'none'; form-action 'self'; "
    "base-uri 'self'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    # With "no-referrer", browsers would also hide the origin of forms.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_READING = ("GET", "HEAD")


class Guard:
    """The outermost layer of the site. `origins` are the addresses of the site, such as http://localhost:50080."""

    def __init__(self, app: ASGIApp, viewers: Viewers, origins: Iterable[str]) -> None:
        self._app = app
        self._viewers = viewers
        self._origins = frozenset(origins)
        self._hosts = frozenset(urlsplit(origin).netloc for origin in self._origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_socket = scope["type"] == "websocket"
        if headers.get("host") not in self._hosts:
            await _refuse(421, "This address is not one of the console. See PUBLIC_URL.", scope, receive, send)
        elif (is_socket or scope["method"] not in _READING) and headers.get("origin") not in self._origins:
            await _refuse(403, "This request does not come from a page of the console.", scope, receive, send)
        elif self._must_sign_in(scope):
            if is_socket or scope["path"].startswith("/_nicegui"):
                await _refuse(401, "Sign in first.", scope, receive, send)
            else:
                await RedirectResponse(SIGN_IN_PATH, status_code=303, headers=_HEADERS)(scope, receive, send)
        else:
            await self._app(scope, receive, _with_headers(send))

    def _must_sign_in(self, scope: Scope) -> bool:
        if scope["path"] == SIGN_IN_PATH:
            return False
        return self._viewers.of(HTTPConnection(scope).cookies.get(SESSION_COOKIE)) is None


async def _refuse(status: int, text: str, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": text})
    else:
        await PlainTextResponse(text, status_code=status, headers=_HEADERS)(scope, receive, send)


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
        await send(message)

    return send_with_headers
