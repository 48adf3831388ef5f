"""Makes a call as any gRPC client would, and returns how it ended."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from shop_common.rpc.status import STATUS_KEY


@dataclass(frozen=True)
class Outcome:
    """The status of a call. A failed one has the reason and metadata of its ErrorInfo, and the fields of BadRequest."""

    code: grpc.StatusCode
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)


def outcome(call: Callable[[], object]) -> Outcome:
    """Make the call and return its outcome. The reason is empty if gRPC itself made the status."""
    try:
        call()
    except grpc.RpcError as raised:
        error: Any = raised  # grpcio raises the call itself; its stubs declare only RpcError
        status = Status()
        for key, value in error.trailing_metadata() or ():
            if key == STATUS_KEY:
                status.ParseFromString(value)
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details:
            _ = detail.Unpack(info) or detail.Unpack(bad)
        fields = [violation.field for violation in bad.field_violations]
        return Outcome(error.code(), info.reason, dict(info.metadata), fields)
    return Outcome(grpc.StatusCode.OK)


def refusal(call: Callable[[], object]) -> Outcome:
    """Make a call that must fail, and return its outcome."""
    refused = outcome(call)
    assert refused.code is not grpc.StatusCode.OK, "the call was not refused"
    return refused
