"""Serves the site on a thread, together with the health of this process."""

import socket
import threading
import time

import uvicorn
from starlette.types import ASGIApp

from console.settings import ConsoleSettings
from shop_common.environment import listen
from shop_common.process import lifecycle
from shop_common.rpc.health import Health, HealthServer

START_SECONDS_MAX = 60.0
_POLL_SECONDS = 0.02


class SiteServer:
    """The web server, with the interface that `lifecycle.serve` expects."""

    def __init__(self, listener: socket.socket, app: ASGIApp, settings: ConsoleSettings) -> None:
        self.health = Health()
        self.port: int = listener.getsockname()[1]
        self._listener = listener
        self._health_server = HealthServer(settings.health_port, listen_host=settings.listen_host, health=self.health)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",  # grpc.aio supports it best
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, int(settings.grace_seconds)),
            )
        )
        self._thread = threading.Thread(target=self._run, name="site", daemon=True)

    def start(self) -> None:
        """Serve. Returns when browsers can connect. Raises PortBusy."""
        self._health_server.start()
        self._thread.start()
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self._server.started:
            if time.monotonic() > deadline:
                lifecycle.fatal(f"the site did not start within {START_SECONDS_MAX:g} s")
            time.sleep(_POLL_SECONDS)
        self.health.set_ready("server", ready=True)

    def stop(self, grace_seconds: float) -> None:
        """Stop. Open pages show that the connection is lost, and connect to the next process."""
        self._server.should_exit = True
        self._thread.join(grace_seconds + 1)
        self._health_server.stop(grace_seconds)

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        except BaseException as error:
            lifecycle.fatal("the site failed", error)
        if not self._server.should_exit:
            lifecycle.fatal("the site ended")


def opened(settings: ConsoleSettings) -> socket.socket:
    """Open HTTP_PORT for this process alone. Raises PortBusy."""
    host = listen.python_host(settings.listen_host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listen.probe(settings.listen_host, settings.http_port)
        # By default, Python's servers on every address of IPv6 refuse IPv4.
        dual = host == "::" and socket.has_dualstack_ipv6()
        return socket.create_server((host, settings.http_port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise listen.PortBusy(listen.refusal(settings.listen_host, settings.http_port, error)) from error


def origins(settings: ConsoleSettings, port: int) -> set[str]:
    """Return the addresses under which browsers may use the site."""
    if settings.public_url:
        return {settings.public_url}
    return {f"http://{host}:{port}" for host in ("localhost", "127.0.0.1", "[::1]", settings.listen_host)}
