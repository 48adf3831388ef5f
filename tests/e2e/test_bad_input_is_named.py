"""A request with a bad value is refused with INVALID_ARGUMENT and the name of the field, never with INTERNAL."""

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
from shopctl.client import SERVICES
from tests.e2e.bad_values import Case, cases, good

METHODS = {f"{service.name}.{method.name}": method for service in SERVICES for method in service.methods}

# The statuses of a valid request, including one for a resource that does not exist or is in another state.
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
        yield {"shop.inventory.v1": inventory, "shop.order.v1": orders, "shop.access.v1": orders}


@pytest.mark.parametrize("name", METHODS)
def test_every_bad_value_of_every_field_is_refused_by_name(channels: Mapping[str, grpc.Channel], name: str) -> None:
    method = METHODS[name]
    tested: Counter[str] = Counter()
    for case in cases(method):
        status = _answer(channels, method, case.request.SerializeToString(), case)
        assert status.code in EXPECTED, f"{case}: {status}"
        if case.must_refuse:
            assert status.code == code_pb2.INVALID_ARGUMENT, f"{case}: {status}"
        if status.code == code_pb2.INVALID_ARGUMENT:
            assert _names(status, case.path), f"{case}: names only {_bad_fields(status)}"
        tested[case.path] += 1
    # Every field of the request was tested.
    assert {path.partition(".")[0].partition("[")[0] for path in tested} == {f.name for f in method.input_type.fields}


@pytest.mark.parametrize("name", METHODS)
def test_bytes_that_are_not_a_valid_message_cause_no_internal_error(
    channels: Mapping[str, grpc.Channel], name: str
) -> None:
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
def test_an_empty_request_causes_no_internal_error(channels: Mapping[str, grpc.Channel], name: str) -> None:
    assert _answer(channels, METHODS[name], b"").code in EXPECTED


def _answer(
    channels: Mapping[str, grpc.Channel], method: MethodDescriptor, request: bytes, case: Case | None = None
) -> Status:
    """The status of the call. For a batch, the status of its one part."""
    service = method.containing_service
    # Without serializers, so that any bytes can be sent.
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
    return _of_batch(answer) if "results" in answer.DESCRIPTOR.fields_by_name else Status()


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
    """True if a violation names this field, a message that contains it, or a part of it.

    In a batch, the violations of a part name fields relative to that part.
    """
    paths = (path, path.removeprefix("orders[0].").removeprefix("requests[0]."))
    return any(_is_within(field, p) or _is_within(p, field) for field in _bad_fields(status) if field for p in paths)


def _is_within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith((f"{outer}.", f"{outer}["))
