"""Makes a call as any gRPC client would, and returns its outcome."""

from collections.abc import Callable
from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status


def outcome(call: Callable[[], object]) -> tuple[grpc.StatusCode, ErrorInfo]:
    """Make the call. Returns its status and its ErrorInfo, which is empty for OK. Every failed call must have one."""
    info = ErrorInfo()
    try:
        call()
    except grpc.RpcError as raised:
        error: Any = raised  # grpcio's error is also the call object, but its type stubs do not declare that
        status = rpc_status.from_call(error)  # type: ignore[no-untyped-call]
        if status is None or not status.details or not status.details[0].Unpack(info):
            raise AssertionError(f"the failure has no ErrorInfo: {error}") from raised
        code: grpc.StatusCode = error.code()
        return code, info
    return grpc.StatusCode.OK, info


def refusal(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Make a call that must fail, and return its status and reason."""
    code, info = outcome(call)
    assert code is not grpc.StatusCode.OK, "the call was not refused"
    return code, info.reason
