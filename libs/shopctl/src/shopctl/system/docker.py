"""Docker on this machine: detects the engine and runs docker commands.

A test that needs Docker uses the fixture `docker_engine` (testkit.pytest_plugin), or its module has
`pytestmark = pytest.mark.usefixtures("docker_engine")`. Without an engine the test is skipped; with
TEST_REQUIRE_DOCKER=1, as in CI, it fails.
"""

import subprocess
from functools import cache

VERSION_SECONDS = 10
RUN_SECONDS = 120


@cache
def engine() -> str | None:
    """Return the engine, such as `Docker 28.2.2`, or None. Cached: an engine that starts later is not noticed."""
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        version = subprocess.run(command, capture_output=True, text=True, timeout=VERSION_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"Docker {version.stdout.strip()}" if version.returncode == 0 else None


def run(*words: str, seconds: float = RUN_SECONDS, check: bool = True, errors_too: bool = False) -> str:
    """Run docker and return its standard output; with `errors_too`, also standard error, which carries logs.

    Raises AssertionError with the whole output if it fails, unless `check` is false.
    """
    done = subprocess.run(
        ["docker", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if errors_too else subprocess.PIPE,
        text=True,
        timeout=seconds,
        check=False,
    )
    report = f"docker {' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr or ''}"
    assert done.returncode == 0 or not check, report
    return done.stdout
