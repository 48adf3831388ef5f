"""Log lines with values that JSON cannot represent."""

import json

import pytest

from shop_common.telemetry import logs


@pytest.mark.parametrize(
    "value", ["half a pair: \ud800", 2**70, {2**70: 1}, {(1, 2): 3}, b"\xff", object, float("nan")]
)
def test_a_value_that_json_cannot_represent_does_not_lose_the_line(value: object) -> None:
    line = logs._dumps({"event": "said", "value": value})

    assert json.loads(line)["event"] == "said"
    assert "\n" not in line
