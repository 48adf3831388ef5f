"""The errors of `./task cluster-deploy` that need no cluster. tests/cluster deploys to a real one."""

import json
import shutil
from pathlib import Path

import pytest

from devstack.__main__ import main


def test_without_kubectl_the_error_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    assert main(["cluster-deploy"]) == 1

    assert capsys.readouterr().err == "cluster-deploy: kubectl is not installed\n"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not on the PATH")
def test_a_cluster_of_another_kind_needs_a_command_that_loads_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    context = {"name": "example", "context": {"cluster": "example", "user": "example"}}
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "example", "contexts": [context]}
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))

    assert main(["cluster-deploy"]) == 1

    assert capsys.readouterr().err == (
        "cluster-deploy: the context example is not a cluster of kind: "
        "set --load to a command that brings images to its nodes\n"
    )
