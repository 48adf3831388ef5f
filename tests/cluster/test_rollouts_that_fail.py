"""A rollout that cannot succeed stops and says so, and the old pods serve every call until the rollback."""

from collections.abc import Callable

import pytest

from tests.cluster import documented
from tests.cluster.cluster import Cluster, Object
from tests.cluster.conftest import ABSENT_IMAGE, TWO_REPLICAS, WRONG_SETTING
from tests.cluster.load import load

pytestmark = [pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1800)]

NAME = "order-api"


def test_an_absent_image_stops_the_rollout_and_no_call_fails(system: Cluster) -> None:
    def shows_why(new: Object) -> None:
        (status,) = new["status"]["containerStatuses"]
        assert status["state"]["waiting"]["reason"] in ("ErrImagePull", "ImagePullBackOff")

    _check_that_the_rollout_stops(system, ABSENT_IMAGE, shows_why)


def test_a_wrong_setting_stops_the_rollout_and_no_call_fails(system: Cluster) -> None:
    def shows_why(new: Object) -> None:
        assert "GRACE_SECONDS" in system.kubectl("logs", new["metadata"]["name"])

    _check_that_the_rollout_stops(system, WRONG_SETTING, shows_why)


def _check_that_the_rollout_stops(system: Cluster, overlay: str, shows_why: Callable[[Object], None]) -> None:
    old = {each["metadata"]["name"] for each in system.pods(NAME)}
    with load(system) as calls:
        try:
            # The migrations are unchanged, so these commands upgrade as well.
            with pytest.raises(AssertionError, match="exceeded its progress deadline"):
                system.shell(documented.rollback(overlay))
            pods = {each["metadata"]["name"]: each for each in system.pods(NAME)}
            assert old < set(pods)
            assert all(_is_ready(pods[name]) for name in old)
            (new,) = set(pods) - old
            assert not _is_ready(pods[new])
            shows_why(pods[new])
        finally:
            system.shell(documented.rollback(TWO_REPLICAS))

    report = calls.report("a rollout that stops, and its rollback")
    assert calls.failed == [], report
    assert old == {each["metadata"]["name"] for each in system.pods(NAME)}


def _is_ready(pod: Object) -> bool:
    conditions = {condition["type"]: condition["status"] for condition in pod["status"]["conditions"]}
    return conditions.get("Ready") == "True"
