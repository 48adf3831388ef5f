"""PostgreSQL with TLS: connections are verified, and passwords and certificates change without a failed call."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event

import psycopg
import pytest
from sqlalchemy import event, text

from devstack.certificates import Authority, Files
from devstack.ports import free_ports
from devstack.servers.containers import Container
from inventory_api.settings import InventorySettings
from shop_common.db.database import Database, cause_of
from shop_common.environment.settings import read
from shop_common.errors import ShopError
from testkit.eventually import eventually

IMAGE = "postgres:17"
CALLERS = 8
OLD, NEW, NEWEST = "the old password", "the new password", "the newest password"
ROLE = "inventory_api"

# This program changes the rights of the files. Otherwise every user could read the key, and PostgreSQL would refuse it.
START = """
install -o postgres -m 600 /dev/null /etc/server.key
echo "$CHAIN" > /etc/server.crt
echo "$KEY" > /etc/server.key
echo 'local all all trust
hostssl all all all scram-sha-256' > /etc/hba.conf
exec docker-entrypoint.sh postgres -c ssl=on -c ssl_cert_file=/etc/server.crt -c ssl_key_file=/etc/server.key \
    -c hba_file=/etc/hba.conf
"""


class SecuredServer:
    """A server in a container that accepts only connections with TLS."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority.create()
        self.files = Files(folder / "postgres")
        self.authority.issue("postgres", self.files)
        (self.port,) = free_ports(1)
        environment = {
            "POSTGRES_PASSWORD": "admin",
            "CHAIN": self.files.cert.read_text(),
            "KEY": self.files.key.read_text(),
        }
        self._container = Container.start(IMAGE, self.port, environment, ["bash", "-c", START], inside=5432)
        eventually(lambda: self.accepts("postgres", "admin"), within_seconds=120)
        self.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{OLD}'")

    def stop(self) -> None:
        self._container.stop()

    def execute(self, statement: str) -> str:
        return self._container.execute("psql", "-U", "postgres", "-At", "-c", statement)

    def renew_certificate(self) -> None:
        self.authority.issue("postgres", self.files)
        write = f"cat > /etc/server.crt <<'END'\n{self.files.cert.read_text()}END\n"
        write += f"cat > /etc/server.key <<'END'\n{self.files.key.read_text()}END\n"
        self._container.execute("bash", "-c", write)
        self.execute("SELECT pg_reload_conf()")

    def accepts(self, user: str, password: str) -> bool:
        try:
            psycopg.connect(
                host="127.0.0.1",
                port=self.port,
                user=user,
                password=password,
                dbname="postgres",
                sslmode="verify-full",
                sslrootcert=str(self.files.ca),
            ).close()
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture(scope="module")
def server(docker_engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredServer]:
    running = SecuredServer(tmp_path_factory.mktemp("postgres"))
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture
def password_file(server: SecuredServer, tmp_path: Path) -> Path:
    server.execute(f"ALTER ROLE {ROLE} PASSWORD '{OLD}'")
    return write_password(tmp_path / "password", OLD)


def write_password(path: Path, password: str) -> Path:
    part = path.with_suffix(".part")
    part.write_text(f"{password}\n")
    return part.replace(path)


@pytest.fixture
def connect(
    server: SecuredServer, password_file: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Database]]:
    """Open the database as a process does, from its settings."""
    opened = []

    def connect(host: str = "127.0.0.1", sslmode: str = "verify-full", ca: Path = server.files.ca) -> Database:
        options = f"hostaddr=127.0.0.1&sslmode={sslmode}&sslrootcert={ca}"
        monkeypatch.setenv("DATABASE_URL", f"postgresql://{ROLE}@{host}:{server.port}/postgres?{options}")
        monkeypatch.setenv("DATABASE_PASSWORD_FILE", str(password_file))
        opened.append(Database(read(InventorySettings).database_url))
        return opened[-1]

    yield connect
    for database in opened:
        database.close()


def query(database: Database) -> object:
    return database.query(lambda tx: tx.execute(text("SELECT current_user")).scalar_one())


def test_a_process_verifies_the_certificate_and_the_name_of_the_server(
    server: SecuredServer, connect: Callable[..., Database], tmp_path: Path
) -> None:
    database = connect()
    tls = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    assert database.query(lambda tx: tx.execute(text(tls)).scalar_one()) is True

    other = Files(tmp_path / "other")
    Authority.create("another CA").issue("postgres", other)
    with pytest.raises(ShopError) as wrong_authority:
        query(connect(ca=other.ca))
    assert "certificate verify failed" in cause_of(wrong_authority.value)
    with pytest.raises(ShopError) as wrong_name:
        query(connect(host="elsewhere"))
    assert "does not match host name" in cause_of(wrong_name.value)
    with pytest.raises(ShopError) as no_tls:
        query(connect(sslmode="disable"))
    assert "no encryption" in cause_of(no_tls.value)


@contextmanager
def load(database: Database) -> Iterator[Callable[[], None]]:
    """Let callers query the database during the block, each time on a new connection.

    Yields a function that waits until each caller has connected again. Raises the error of a call that failed.
    """
    event.listen(database.engine, "checkin", lambda _, entry: entry.invalidate(soft=True))
    end = Event()
    done: list[object] = []

    def call() -> None:
        while not end.is_set():
            done.append(query(database))

    def reconnect() -> None:
        before = len(done)
        # The callers take turns only roughly.
        eventually(lambda: len(done) > before + 4 * CALLERS or any(result.done() for result in results))

    with ThreadPoolExecutor(CALLERS) as callers:
        results = [callers.submit(call) for _ in range(CALLERS)]
        try:
            yield reconnect
        finally:
            end.set()
    for result in results:
        result.result()


def test_a_password_changes_under_load_without_a_failed_call(
    server: SecuredServer, password_file: Path, connect: Callable[..., Database]
) -> None:
    database = connect()
    with load(database) as reconnect:
        for password in (NEW, NEWEST, OLD, NEW):
            # Write the file first. Until the server has the new password, new connections use the old one.
            write_password(password_file, password)
            reconnect()
            server.execute(f"ALTER ROLE {ROLE} PASSWORD '{password}'")
            reconnect()
    # A process that starts now gets the password of the file.
    assert query(connect()) == ROLE


def test_a_wrong_password_in_the_file_is_not_used(
    server: SecuredServer, password_file: Path, connect: Callable[..., Database], capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(connect()) as database:
        write_password(password_file, "a typing error")
        database.engine.dispose()
        assert query(database) == ROLE
        password_file.unlink()
        database.engine.dispose()
        assert query(database) == ROLE

    output = capsys.readouterr().out
    assert "the server refuses the new database password; the last one stays in use" in output
    assert "the database password cannot be read; the last one stays in use" in output
    assert "a typing error" not in output


def test_a_server_certificate_changes_under_load_without_a_failed_call(
    server: SecuredServer, connect: Callable[..., Database]
) -> None:
    database = connect()
    with load(database) as reconnect:
        server.renew_certificate()
        reconnect()
