"""Each benchmark runs in its shortest form, and its own checks of units, reservations, orders and events pass.

So short a run measures nothing useful, so its timings are not checked.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 600

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="benchmarks read CPU times from /proc: Linux only"),
    pytest.mark.xdist_group("benchmarks"),
    pytest.mark.timeout(SECONDS + 10),
]

BRIEF = ("--rounds", "1", "--seconds", "0.3")
ALTERNATIVES = ("benchmarks.alternatives", *BRIEF, "--callers", "4")
# Without a Redis on this machine, the benchmark leaves the lock in Redis out.
HAS_REDIS = shutil.which("redis-server") or os.environ.get("TEST_REQUIRE_REDIS") == "1"
REDIS = "Redis lock" if HAS_REDIS else "row locks"


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        (("benchmarks", "--quick", "--only", "create-order", "--with-relay"), "CreateOrder with 3 lines"),
        (("benchmarks.scale", *BRIEF, "--rows", "1000", "2000"), "list-deep-status"),
        (("benchmarks.reaping", "--holds", "20000", "--seconds", "0.5", "--windows", "1"), "p99 ≤ 2 × before"),
        (("benchmarks.importing", "--rows", "2000", "--databases", "sqlite"), "2,000 rows"),
        (("benchmarks.footprint", *BRIEF, "--workers", "2", "--databases", "postgresql"), "reservation-reaper"),
        (("benchmarks.compare", "HEAD", "--quick"), "an empty call"),
        (("benchmarks.secured", "--quick"), "secured: server"),
        (("benchmarks.client", *BRIEF, "--callers", "1", "16"), "client, tasks"),
        ((*ALTERNATIVES, "--units", "10", "--lock-seconds", "0.5", "--pause-seconds", "2"), REDIS),
        (("benchmarks.capacity", "--orders", "20", "--warmup-orders", "10", "--callers", "4"), "write-ahead log"),
        (("benchmarks.relay", "--quick", "--sides", "ours", "loop"), "loop"),
    ],
    ids=[
        "calls",
        "scale",
        "reaping",
        "importing",
        "footprint",
        "compare",
        "secured",
        "client",
        "alternatives",
        "capacity",
        "relay",
    ],
)
def test_a_benchmark_runs_and_its_counts_are_right(command: tuple[str, ...], printed: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert printed in result.stdout
