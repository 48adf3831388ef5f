"""Queues: calls are sent in arrival order, within the limits of the server."""

import pytest
from google.rpc.status_pb2 import Status

from inventory_api.api import parse
from order_api.api import parse as order_parse
from shop_client import Line, OrderLines, Stock, batches, calls, errors
from shop_client.batches import (
    BATCHES_MAX,
    BYTES_MAX,
    CALLS_MAX,
    LINES_MAX,
    OVERLAP_CALLS_MIN,
    STALLED_SECONDS,
    Batch,
    Entry,
    Queue,
)
from shop_common.batching import coalescer
from shop_common.rpc import large_requests
from shop_protos.inventory.v1 import inventory_pb2 as pb

NOW = 1000.0


def test_the_limits_are_those_of_the_server() -> None:
    assert CALLS_MAX == parse.BATCH_ORDERS_MAX == parse.BATCH_REQUESTS_MAX == order_parse.BATCH_ORDERS_MAX
    assert LINES_MAX == coalescer.BATCH_WEIGHT_MAX
    assert LINES_MAX <= parse.BATCH_LINES_MAX
    assert LINES_MAX <= order_parse.BATCH_LINES_MAX
    assert BYTES_MAX < large_requests.LARGE_REQUEST_BYTES


def entry(order_id: str = "order", *, lines: int = 1, deadline: float = NOW + 10) -> Entry[None]:
    order = OrderLines(order_id, (Line(1, 1),) * lines, request_id=order_id)
    return Entry(calls.reserve_lines(order, ""), deadline, None)


def queue(*entries: Entry[None]) -> Queue[None]:
    filled: Queue[None] = Queue("token")
    for each in entries:
        filled.add(each)
    return filled


def ids(batch: Batch[None] | None) -> list[str]:
    return [each.call.request_id for each in batch.entries] if batch else []


def test_all_waiting_calls_travel_in_arrival_order() -> None:
    assert ids(queue(*(entry(str(n)) for n in range(10))).next_batch(NOW)) == [str(n) for n in range(10)]


def test_while_a_batch_is_in_flight_calls_collect() -> None:
    waiting = queue(entry("first"))
    first = waiting.next_batch(NOW)
    assert ids(first) == ["first"]
    waiting.add(entry("second"))
    waiting.add(entry("third"))

    assert waiting.next_batch(NOW + 0.1) is None
    second = finish_and_take(waiting, first)
    assert ids(second) == ["second", "third"]
    assert finish_and_take(waiting, second) is None
    assert waiting.is_idle


def finish_and_take(waiting: Queue[None], batch: Batch[None] | None) -> Batch[None] | None:
    assert batch is not None
    waiting.finish(batch)
    return waiting.next_batch(NOW + 0.1)


def test_a_second_batch_starts_when_as_many_calls_wait_as_are_in_flight() -> None:
    waiting = queue(entry("first"))
    first = waiting.next_batch(NOW)
    assert ids(first) == ["first"]

    sizes = []
    for number in range(3 * OVERLAP_CALLS_MIN - 1):
        waiting.add(entry(str(number)))
        sizes.append(len(ids(waiting.next_batch(NOW))))

    started = OVERLAP_CALLS_MIN - 1
    assert [n for n, size in enumerate(sizes) if size] == [started], "the second batch, and no third one"
    assert sizes[started] == OVERLAP_CALLS_MIN
    third = finish_and_take(waiting, first)
    assert len(ids(third)) == 3 * OVERLAP_CALLS_MIN // 2 - 1
    assert waiting.next_batch(NOW) is None


def test_the_calls_of_many_callers_are_two_batches_of_the_same_size() -> None:
    waiting = queue(*(entry(str(n)) for n in range(4 * OVERLAP_CALLS_MIN)))

    batches = [waiting.next_batch(NOW), waiting.next_batch(NOW)]

    assert [len(ids(batch)) for batch in batches] == [2 * OVERLAP_CALLS_MIN] * 2
    assert waiting.next_batch(NOW) is None


def test_few_calls_are_one_batch() -> None:
    waiting = queue(*(entry(str(n)) for n in range(2 * OVERLAP_CALLS_MIN - 1)))

    assert len(ids(waiting.next_batch(NOW))) == 2 * OVERLAP_CALLS_MIN - 1


def test_a_stalled_batch_holds_up_the_others_for_a_second_only() -> None:
    waiting = queue(*(entry(str(n), lines=LINES_MAX // 10, deadline=NOW + 1000) for n in range(50)))
    assert waiting.next_batch(NOW)

    for number in range(1, BATCHES_MAX):
        assert waiting.next_batch(NOW + (number - 0.5) * STALLED_SECONDS) is None
        assert waiting.next_batch(NOW + number * STALLED_SECONDS)
    assert waiting.next_batch(NOW + 100) is None, f"at most {BATCHES_MAX} batches are outstanding"


def test_a_batch_has_at_most_the_requests_of_one_rpc() -> None:
    waiting = queue(*(entry(str(n)) for n in range(2 * CALLS_MAX + 1)))

    first, second = waiting.next_batch(NOW), waiting.next_batch(NOW)
    assert len(ids(first)) == len(ids(second)) == CALLS_MAX
    assert finish_and_take(waiting, first) is None
    assert ids(finish_and_take(waiting, second)) == [str(2 * CALLS_MAX)]


def test_a_batch_has_at_most_the_lines_of_one_transaction() -> None:
    waiting = queue(*(entry(str(n), lines=200) for n in range(LINES_MAX // 200 + 1)))

    first = waiting.next_batch(NOW)

    assert first is not None
    assert sum(each.call.lines for each in first.entries) == LINES_MAX


def test_a_batch_has_at_most_the_bytes_of_a_request_that_the_server_does_not_queue() -> None:
    waiting = queue(*(entry("x" * 64, lines=4) for _ in range(CALLS_MAX)), entry("y" * 64))

    first = waiting.next_batch(NOW)

    assert first is not None
    assert BYTES_MAX - 500 < first.request.ByteSize() <= BYTES_MAX


def test_a_large_call_travels_alone() -> None:
    waiting = queue(entry("large", lines=LINES_MAX + 1), entry("small"))

    assert ids(waiting.next_batch(NOW)) == ["large"]


def test_calls_that_nobody_waits_for_are_not_sent() -> None:
    late, abandoned, kept = entry("late", deadline=NOW - 1), entry("abandoned"), entry("kept")
    waiting = queue(late, abandoned, kept)
    abandoned.abandon()

    assert ids(waiting.next_batch(NOW)) == ["kept"]


def test_a_batch_lasts_as_long_as_its_most_patient_caller() -> None:
    batch = queue(entry(deadline=NOW + 1), entry(deadline=NOW + 30), entry(deadline=NOW + 2)).next_batch(NOW)

    assert batch is not None
    assert batch.deadline == NOW + 30


def test_the_call_of_a_batch_is_unwanted_when_the_last_caller_has_left() -> None:
    class Running:
        def cancel(self) -> None:
            """Do nothing."""

    first, second = entry(), entry()
    batch = queue(first, second).next_batch(NOW)
    assert batch is not None
    batch.call = Running()

    assert first.abandon() is None
    assert second.abandon() is batch.call


def test_each_entry_gets_its_own_outcome() -> None:
    first, second = entry("first"), entry("second")
    batch = queue(first, second).next_batch(NOW)
    assert batch is not None
    response = pb.BatchReserveStockResponse(
        results=[
            pb.BatchReserveStockResult(reservations=pb.Reservations(reservations=[pb.Reservation(id="r")])),
            pb.BatchReserveStockResult(error=Status(code=9, message="refused")),
        ]
    )

    assert batch.settle(response) == [first, second]

    assert first.result() == response.results[0]
    with pytest.raises(errors.Refused) as refused:
        second.result()
    assert refused.value.request_id == "second"


def test_a_response_with_another_number_of_results_is_an_error_of_every_entry() -> None:
    first, second = entry(), entry()
    batch = queue(first, second).next_batch(NOW)
    assert batch is not None

    batch.settle(pb.BatchReserveStockResponse(results=[pb.BatchReserveStockResult()]))

    assert first.outcome == second.outcome
    assert isinstance(first.outcome, Status)


def test_a_status_for_the_whole_batch_is_the_outcome_of_every_entry() -> None:
    first, second = entry(), entry()
    batch = queue(first, second).next_batch(NOW)
    assert batch is not None
    first.abandon()

    assert batch.settle(batches.cancelled("closed")) == [second]


def test_a_product_is_read_once_in_a_batch_of_checks() -> None:
    checks = [calls.check_stock_in_batch(product, required, None) for product, required in ((1, 1), (2, 5), (1, 9))]
    batch = queue(*(Entry(each, NOW + 10, None) for each in checks if each)).next_batch(NOW)
    assert batch is not None
    assert batch.request == pb.BatchGetAvailabilityRequest(product_ids=[1, 2])
    products = [pb.ProductAvailability(product_id=each, available_quantity=each * 4) for each in (1, 2)]

    batch.settle(pb.BatchGetAvailabilityResponse(products=products))

    stocks = [entry.call.read(entry.result()) for entry in batch.entries]
    assert stocks == [Stock(True, 4), Stock(True, 8), Stock(False, 4)]
    batch.settle(pb.BatchGetAvailabilityResponse(products=products[:1]))
    assert isinstance(batch.entries[0].outcome, Status), "a product is missing"


@pytest.mark.parametrize(
    ("product", "required", "location"),
    [(0, 1, None), (2**63, 1, None), (1, 0, None), (1, 10**9 + 1, None), (1, 1, "A")],
)
def test_a_check_that_a_batch_cannot_carry_is_sent_alone(product: int, required: int, location: str | None) -> None:
    assert calls.check_stock_in_batch(product, required, location) is None
