"""Runs servers in containers for tests, each on one loopback port. Tests can freeze, kill and restart a container.

testcontainers creates the containers. Its own reaper, which needs an image of its own, is switched off. Instead,
devstack's watchdog removes the containers when this process ends.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

from docker.errors import APIError, DockerException, NotFound
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from devstack import watchdog

LOG_LINES = 25


class ContainerUnavailable(Exception):
    """The container cannot be started; the message contains the reason."""


class Container:
    """A running container. Its data survive a restart, and are removed with the container."""

    def __init__(self, made: DockerContainer) -> None:
        self._made = made
        self._inner: Any = made.get_wrapped_container()
        self._frozen = False

    @classmethod
    def start(
        cls, image: str, port: int, environment: Mapping[str, str], command: Sequence[str] | None = None, *, inside: int
    ) -> Self:
        """Start a container, and publish its port `inside` as `port` of 127.0.0.1. Raises ContainerUnavailable."""
        testcontainers_config.ryuk_disabled = True
        made = None
        try:
            made = DockerContainer(image, env=dict(environment))
            if command is not None:
                made.with_command(list(command))
            # Bind to loopback only, so that other machines cannot connect. `with_bind_ports` has no option for that.
            ports: dict[str, Any] = made.ports
            ports[f"{inside}/tcp"] = ("127.0.0.1", port)
            made.start()
        except DockerException as error:
            if made is not None:
                made.stop()
            raise ContainerUnavailable(f"{image} does not start in a container: {error}") from error
        except BaseException:
            if made is not None:
                made.stop()
            raise
        started = cls(made)
        watchdog.run(started.name, ["docker", "rm", "--force", "--volumes", started.name])
        return started

    @property
    def name(self) -> str:
        """The engine's id of the container."""
        return self._made.get_container_id()

    @property
    def alive(self) -> bool:
        """True while the program in the container is running."""
        self._inner.reload()
        return bool(self._inner.attrs["State"]["Running"])

    def execute(self, *command: str) -> str:
        """Run a program in the container and return its output. Raises RuntimeError if it fails."""
        code, output = self._inner.exec_run(list(command))
        if code:
            raise RuntimeError(f"{' '.join(command)} failed ({code}): {output.decode(errors='replace')}")
        return str(output.decode(errors="replace"))

    def tail(self) -> str:
        """Return the end of the container's log."""
        return str(self._inner.logs(tail=LOG_LINES).decode(errors="replace")).strip()

    def freeze(self) -> None:
        """Freeze all processes of the container until `thaw`. Their connections stay open."""
        self._inner.pause()
        self._frozen = True

    def thaw(self) -> None:
        """Let the processes continue. Does nothing if the container is not frozen."""
        if self._frozen:
            self._inner.unpause()
            self._frozen = False

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def kill(self) -> None:
        """Kill the container (SIGKILL), which acts like a crash, and wait until it has ended. May be repeated."""
        self.thaw()
        # The Docker API reports a conflict if the container has already ended.
        with suppress(APIError):
            self._inner.kill()
        self._inner.wait()

    def start_again(self) -> None:
        """Restart the container after `kill`, with the same data and port. Returns before the server accepts calls."""
        self._inner.start()

    def stop(self) -> None:
        """Remove the container, in any state, and its data. May be repeated."""
        with suppress(NotFound):
            self._made.stop()
        watchdog.forget(self.name)
