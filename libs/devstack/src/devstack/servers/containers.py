"""Containers for tests: a server behind one port of the loopback, to be frozen, killed and started again at will.

testcontainers makes them. Its own reaper is left out: devstack's watchdog removes them should this process die, and
needs no image for that.
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
    """No such container can be had here; the message says why."""


class Container:
    """A container that runs. Its data live as long as it does, over any restart."""

    def __init__(self, made: DockerContainer) -> None:
        self._made = made
        self._inner: Any = made.get_wrapped_container()
        self._frozen = False

    @classmethod
    def start(
        cls, image: str, port: int, environment: Mapping[str, str], command: Sequence[str] | None = None, *, inside: int
    ) -> Self:
        """Start it; the port `inside` it is `port` of 127.0.0.1, and that alone. Raises ContainerUnavailable."""
        testcontainers_config.ryuk_disabled = True
        made = None
        try:
            made = DockerContainer(image, env=dict(environment))
            if command is not None:
                made.with_command(list(command))
            # On the loopback only, which `with_bind_ports` has no word for: a test's server is nobody else's business.
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
        """By which the engine knows it."""
        return self._made.get_container_id()

    @property
    def alive(self) -> bool:
        """Whether its program runs."""
        self._inner.reload()
        return bool(self._inner.attrs["State"]["Running"])

    def execute(self, *command: str) -> str:
        """What a program prints inside it. Raises RuntimeError when that fails."""
        code, output = self._inner.exec_run(list(command))
        if code:
            raise RuntimeError(f"{' '.join(command)} failed ({code}): {output.decode(errors='replace')}")
        return str(output.decode(errors="replace"))

    def tail(self) -> str:
        """The end of its log."""
        return str(self._inner.logs(tail=LOG_LINES).decode(errors="replace")).strip()

    def freeze(self) -> None:
        """Stop all of it where it is, connections open, until `thaw`."""
        self._inner.pause()
        self._frozen = True

    def thaw(self) -> None:
        """Harmless when it is not frozen."""
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
        """End it at once, as a crash would (SIGKILL), and wait until it is gone. Harmless when it is."""
        self.thaw()
        # A conflict: it had ended already.
        with suppress(APIError):
            self._inner.kill()
        self._inner.wait()

    def start_again(self) -> None:
        """After `kill`: with the data and on the port that it had. Returns before it serves."""
        self._inner.start()

    def stop(self) -> None:
        """Remove it and its data, whatever state it is in. May be repeated."""
        with suppress(NotFound):
            self._made.stop()
        watchdog.forget(self.name)
