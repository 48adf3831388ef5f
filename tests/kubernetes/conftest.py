"""The rendered overlays. Rendering needs kustomize or kubectl."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.kubernetes.rendered import Rendered, render, renderer

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("deploy/kubernetes", "tests/kubernetes/all_options")

REQUIRE_VARIABLE = "TEST_REQUIRE_KUSTOMIZE"


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Rendered:
    """Return a function that renders a folder and remembers the result.

    It uses a copy of the manifests in which `make-passwords` has run.
    Skips the test without kustomize and kubectl, or fails it if TEST_REQUIRE_KUSTOMIZE=1.
    """
    command = renderer()
    if command is None:
        reason = "neither kustomize nor kubectl is on the PATH"
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_VARIABLE} is set")
        pytest.skip(reason)
    copy = tmp_path_factory.mktemp("repository")
    for each in FOLDERS:
        shutil.copytree(ROOT / each, copy / each)
    subprocess.run([copy / "deploy/kubernetes/overlays/local/make-passwords"], check=True)
    return cache(lambda folder: render(command, copy / folder))
