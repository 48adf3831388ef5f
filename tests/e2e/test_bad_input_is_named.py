"""Whatever is wrong in a request, the answer is INVALID_ARGUMENT that names the field, never INTERNAL."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status

from devstack.stack import Stack
from shop_common.rpc.status import STATUS_KEY
from shop_protos.inventory.v1.inventory_pb2 import BatchReserveStockResponse
from shopctl.client import SERVICES
from tests.e2e.bad_values import Case, cases, good

METHODS = {f"{service.name}.{method.name}": method for service in SERVICES for method in service.methods}

# What a right request for things that do not exist, or have another state, may be answered with.
EXPECTED = {
    code_pb2.OK,
    code_pb2.INVALID_ARGUMENT,
    code_pb2.NOT_FOUND,
    code_pb2.FAILED_PRECONDITION,
    code_pb2.ABORTED,
}


@pytest.fixture
def channels(stack: Stack) -> Iterator[Mapping[str, grpc.Channel]]:
    with (
        grpc.insecure_channel(stack.inventory_address) as inventory,
        grpc.insecure_channel(stack.orders_address) as orders,
    ):
        yield {"shop.inventory.v1": inventory, "shop.order.v1": orders}


@pytest.mark.parametrize("name", METHODS)
def test_every_bad_value_of_every_field_is_refused_by_name(channels: Mapping[str, grpc.Channel], name: str) -> None:
    method = METHODS[name]
    asked: Counter[str] = Counter()
    for case in cases(method):
        status = _answer(channels, method, case.request.SerializeToString(), case)
        assert status.code in EXPECTED, f"{case}: {status}"
        if case.must_refuse:
            assert status.code == code_pb2.INVALID_ARGUMENT, f"{case} was answered {status}"
        if status.code == code_pb2.INVALID_ARGUMENT:
            assert _names(status, case.path), f"{case} was not named: {_bad_fields(status)}"
        asked[case.path] += 1
    # Each field had its bad values.
    assert {path.partition(".")[0].partition("[")[0] for path in asked} == {f.name for f in method.input_type.fields}


@pytest.mark.parametrize("name", METHODS)
def test_bytes_that_are_no_message_are_refused(channels: Mapping[str, grpc.Channel], name: str) -> None:
    method = METHODS[name]
    for garbage in (
        b"\xff" * 20,
        b"\x0a\x02\xc3\x28",
        b"\x0a\xff\xff\xff\xff\x0f",
        good(method.input_type).SerializeToString()[:-1],
    ):
        status = _answer(channels, method, garbage)
        assert status.code in EXPECTED, f"{garbage!r}: {status}"


@pytest.mark.parametrize("name", METHODS)
def test_an_empty_request_is_answered_and_never_a_defect(channels: Mapping[str, grpc.Channel], name: str) -> None:
    assert _answer(channels, METHODS[name], b"").code in EXPECTED


def _answer(
    channels: Mapping[str, grpc.Channel], method: MethodDescriptor, request: bytes, case: Case | None = None
) -> Status:
    """The status of the call; of a batch of one order, that order's own."""
    service = method.containing_service
    # Bytes in, bytes out: what is sent need not be a message.
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channels[service.file.package].unary_unary(
        f"/{service.full_name}/{method.name}"
    )
    try:
        response = call(request, timeout=10)
    except grpc.RpcError as error:
        failed: Any = error
        for key, value in failed.trailing_metadata():
            if key == STATUS_KEY:
                return Status.FromString(value)
        return Status(code=failed.code().value[0], message=failed.details())
    answer = GetMessageClass(method.output_type)()
    answer.ParseFromString(response)
    return _of_batch(answer) if isinstance(answer, BatchReserveStockResponse) else Status()


def _of_batch(answer: Message) -> Status:
    batch: Any = answer
    return batch.results[0].error if batch.results else Status()


def _bad_fields(status: Status) -> list[str]:
    bad = BadRequest()
    for detail in status.details:
        if detail.Unpack(bad):
            return [violation.field for violation in bad.field_violations]
    return []


def _names(status: Status, path: str) -> bool:
    """Whether a violation is of this field, or of what it is a part of, or a part of it.

    In a batch each order is for itself.
    """
    paths = (path, path.removeprefix("orders[0]."))
    return any(_is_within(field, p) or _is_within(p, field) for field in _bad_fields(status) if field for p in paths)


def _is_within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith((f"{outer}.", f"{outer}["))
