"""Debian's PgBouncer in a container, in front of a PostgreSQL server on this machine, in transaction mode."""

import time
from collections.abc import Iterator
from configparser import ConfigParser
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
from sqlalchemy import make_url

from devstack import watchdog
from devstack.ports import free_ports
from devstack.postgres import PostgresServer
from shopctl.system import docker
from tests.markdown import code_blocks

POOL_SIZE = 4
"""Server connections for each database: fewer than one of our processes opens, so that transactions share them."""

BUILD_SECONDS = 300
START_SECONDS = 120
_POLL_SECONDS = 0.1
(DOCUMENTED,) = code_blocks((Path(__file__).parents[2] / "docs/postgresql.md").read_text(), "ini")
_DOCKERFILE = Path(__file__).with_name("pgbouncer.Dockerfile")
_IMAGE = "shop-tests/pgbouncer:trixie"


class PgBouncer:
    """A running PgBouncer, for every database of the server behind it."""

    def __init__(self, port: int) -> None:
        self.port = port

    def url(self, direct: str) -> str:
        """The URL of the same database through PgBouncer."""
        return make_url(direct).set(host="127.0.0.1", port=self.port).render_as_string(hide_password=False)

    def plain_url(self, direct: str) -> str:
        """The same URL in psycopg's form."""
        return make_url(self.url(direct)).set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def provide(server: PostgresServer, folder: Path) -> Iterator[PgBouncer]:
    """A PgBouncer with the configuration of docs/postgresql.md, except for a smaller pool. Removed at the end."""
    (port,) = free_ports(1)
    _configure(folder, server, port)
    docker.run("build", "--quiet", "--tag", _IMAGE, "--file", str(_DOCKERFILE), str(folder), seconds=BUILD_SECONDS)
    name = f"shop-tests-pgbouncer-{uuid4().hex[:8]}"
    remove = ["rm", "--force", name]
    watchdog.run(name, ["docker", *remove])
    try:
        # Use the host's network: the server listens on loopback only, and PgBouncer should, too.
        mount = f"{folder}:/etc/pgbouncer:ro"
        docker.run(
            "run", "--detach", "--network", "host", "--name", name, "--volume", mount, _IMAGE, "/etc/pgbouncer/ini"
        )
        pgbouncer = PgBouncer(port)
        _wait_until_it_accepts(pgbouncer.plain_url(server.url), name)
        yield pgbouncer
    finally:
        docker.run(*remove)
        watchdog.forget(name)


def _configure(folder: Path, server: PostgresServer, port: int) -> None:
    url = make_url(server.url)
    folder.chmod(0o755)
    own = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "unix_socket_dir": "",
        "auth_type": "scram-sha-256",
        "auth_file": "/etc/pgbouncer/users",
    }
    settings = ConfigParser()
    settings.read_string(DOCUMENTED)
    settings.read_dict({"pgbouncer": own | {"default_pool_size": str(POOL_SIZE)}})
    settings.read_dict({"databases": {"*": f"host={url.host} port={url.port or 5432}"}})
    with (folder / "ini").open("w") as file:
        settings.write(file)
    (folder / "users").write_text(f'"{url.username}" "{url.password}"\n')
    for name in ("ini", "users"):
        (folder / name).chmod(0o644)


def _wait_until_it_accepts(url: str, container: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"PgBouncer accepts no connections: {error}\n{docker.run('logs', container, errors_too=True)}"
                ) from error
            time.sleep(_POLL_SECONDS)
