"""Docker on this machine: whether an engine answers.

A test that can't do without one asks for the fixture `docker_engine` (testkit.pytest_plugin), or its module does by
`pytestmark = pytest.mark.usefixtures("docker_engine")`. Where no engine answers it is skipped, and fails when
TEST_REQUIRE_DOCKER=1 says that one should, as CI does.
"""

import subprocess
from functools import cache

ANSWER_SECONDS = 10
RUN_SECONDS = 120


@cache
def engine() -> str | None:
    """What answers, such as `Docker 28.2.2`, or None. Asked once: an engine that comes later is not noticed."""
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"Docker {asked.stdout.strip()}" if asked.returncode == 0 else None


def run(*words: str, seconds: float = RUN_SECONDS, check: bool = True, errors_too: bool = False) -> str:
    """What `docker` prints to standard output; with `errors_too` also to standard error, where logs go.

    Raises AssertionError, with all that it said, when it fails and `check` is not off.
    """
    done = subprocess.run(
        ["docker", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if errors_too else subprocess.PIPE,
        text=True,
        timeout=seconds,
        check=False,
    )
    said = f"docker {' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr or ''}"
    assert done.returncode == 0 or not check, said
    return done.stdout
