import pytest

from shop_protos.inventory.v1.inventory_pb2 import CheckStockResponse, ListReservationsResponse, Reservation
from shopctl.smoke import reporter
from shopctl.terminal.failures import CommandFailed


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("availible", "there is no availible in CheckStockResponse; it has available, "),
        ("available__quantity", "there is no quantity in available, a single value"),
    ],
)
def test_the_error_for_an_unknown_path_lists_the_fields_that_exist(path: str, message: str) -> None:
    with pytest.raises(CommandFailed) as failed:
        reporter._differences(CheckStockResponse(), {path: True})

    assert message in str(failed.value)
    assert path.replace("__", ".") in str(failed.value)


def test_a_path_may_lead_through_a_repeated_field() -> None:
    response = ListReservationsResponse(reservations=[Reservation(id="a"), Reservation(id="b")])

    expected: dict[str, object] = {"reservations__id": ["a", "b"], "reservations__count": 2}
    assert reporter._differences(response, expected) == []
    with pytest.raises(CommandFailed, match="there is no name in Reservation"):
        reporter._differences(response, {"reservations__name": []})
