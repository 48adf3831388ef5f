"""Makes a call as any gRPC client would, and returns how it ended."""

from collections.abc import Callable
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status


def outcome(call: Callable[[], object]) -> tuple[grpc.StatusCode, ErrorInfo]:
    """The status of the call, and the ErrorInfo that every failed one must have; an empty one for OK."""
    info = ErrorInfo()
    try:
        call()
    except grpc.RpcError as raised:
        error: Any = raised  # grpcio's error is the call as well, which its stubs do not know
        status = rpc_status.from_call(error)  # type: ignore[no-untyped-call]
        if status is None or not status.details or not status.details[0].Unpack(info):
            raise AssertionError(f"the failure has no ErrorInfo: {error}") from raised
        code: grpc.StatusCode = error.code()
        return code, info
    return grpc.StatusCode.OK, info


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """The status and the reason of a call that fails."""
    code, info = outcome(call)
    assert code is not grpc.StatusCode.OK, "the call was not refused"
    return code, info.reason
