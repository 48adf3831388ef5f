import pytest

from shop_protos.inventory.v1.inventory_pb2 import CheckStockResponse, ListReservationsResponse, Reservation
from shopctl.smoke import narrator
from shopctl.terminal.failures import CommandFailed


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("availible", "there is no availible in CheckStockResponse; it has available, "),
        ("available__quantity", "there is no quantity in available, a single value"),
    ],
)
def test_a_path_that_leads_nowhere_is_named_with_the_fields_that_are_there(path: str, said: str) -> None:
    with pytest.raises(CommandFailed) as failed:
        narrator._differences(CheckStockResponse(), {path: True})

    assert said in str(failed.value)
    assert path.replace("__", ".") in str(failed.value)


def test_a_path_leads_through_what_is_repeated() -> None:
    answer = ListReservationsResponse(reservations=[Reservation(id="a"), Reservation(id="b")])

    expected: dict[str, object] = {"reservations__id": ["a", "b"], "reservations__count": 2}
    assert narrator._differences(answer, expected) == []
    with pytest.raises(CommandFailed, match="there is no name in Reservation"):
        narrator._differences(answer, {"reservations__name": []})
