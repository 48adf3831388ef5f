"""Where Keycloak cannot run, the reason is known before a download. tests/oidc runs it."""

from pathlib import Path

import pytest

from devstack.servers import keycloak
from devstack.servers.keycloak import KeycloakUnavailable


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH, empty. The cache of downloads is empty, too."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return folder


def _program(path: Path, output: str) -> None:
    path.write_text(f"#!/bin/sh\necho '{output}' >&2\n")
    path.chmod(0o755)


def test_java_is_needed(programs: Path) -> None:
    assert "needs Java" in (keycloak.missing() or "")

    _program(programs / "java", 'openjdk version "1.8.0_392"')
    assert keycloak.missing() == "Keycloak needs Java 17 or newer, and this is Java 8"


def test_maven_is_needed_for_the_download_only(programs: Path, tmp_path: Path) -> None:
    _program(programs / "java", 'openjdk version "21.0.2" 2024-01-16')
    assert "`mvn` is not on the PATH" in (keycloak.missing() or "")

    archive = tmp_path / "cache" / "shop" / f"keycloak-quarkus-dist-{keycloak.VERSION}.zip"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"another file")
    assert keycloak.missing() is None

    with pytest.raises(KeycloakUnavailable, match="its SHA-256 is"), keycloak.provide():
        pass


def test_a_failed_download_is_reported(programs: Path) -> None:
    _program(programs / "java", 'openjdk version "21.0.2" 2024-01-16')
    mvn = programs / "mvn"
    mvn.write_text("#!/bin/sh\necho 'no such artifact'\nexit 1\n")
    mvn.chmod(0o755)

    with pytest.raises(KeycloakUnavailable, match="no such artifact"), keycloak.provide():
        pass
