"""Docker on this machine: whether an engine answers.

A test that can't do without one asks for the fixture `docker_engine` (devstack.pytest_plugin), or its module does by
`pytestmark = pytest.mark.usefixtures("docker_engine")`. Where no engine answers it is skipped, and fails when
TEST_REQUIRE_DOCKER=1 says that one should, as CI does.
"""

import subprocess
from functools import cache

ANSWER_SECONDS = 10


@cache
def engine() -> str | None:
    """What answers, such as `Docker 28.2.2`, or None. Asked once: an engine that comes later is not noticed."""
    command = ["docker", "version", "--format", "{{.Server.Version}}"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return f"Docker {asked.stdout.strip()}" if asked.returncode == 0 else None
