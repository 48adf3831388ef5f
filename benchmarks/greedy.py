"""A greedy caller: a process that keeps many large calls open on many connections, until its standard input closes.

It reads its job as one line of JSON, and writes its outcome as one line of JSON.
"""

import json
import secrets
import sys
import threading
import time
from base64 import b64decode
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.http2 import Credentials

CALL_SECONDS = 30
STOP_SECONDS = 60
NONCE = "nonce-nonce-"


@dataclass(frozen=True)
class GreedyJob:
    """Calls of one method: `calls` at a time on each of the `connections`.

    `body` is in base64. Each call replaces the text NONCE in it by a unique text of the same length.
    """

    target: str
    method: str
    body: str
    connections: int
    calls: int
    credentials: dict[str, str]


@dataclass
class GreedyOutcome:
    """The number of calls by their outcome."""

    succeeded: int = 0
    refused: int = 0
    failed: int = 0
    seconds: float = 0.0


class Greedy:
    """The caller. It repeats a refused call at once."""

    def __init__(self, job: GreedyJob) -> None:
        self._job = job
        self._body = b64decode(job.body)
        self._credentials = Credentials(**job.credentials)
        self._stopped = threading.Event()
        self._outcome = GreedyOutcome()
        self._lock = threading.Lock()

    def run(self) -> GreedyOutcome:
        """Call until standard input closes."""
        with ExitStack() as stack:
            threads = [
                threading.Thread(target=self._call, args=(method,), daemon=True)
                for method in [self._connect(stack) for _ in range(self._job.connections)]
                for _ in range(self._job.calls)
            ]
            began = time.monotonic()
            for thread in threads:
                thread.start()
            sys.stdin.read()
            self._stopped.set()
            self._outcome.seconds = time.monotonic() - began
            for thread in threads:
                thread.join(STOP_SECONDS)
        return self._outcome

    def _connect(self, stack: ExitStack) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
        files = self._credentials
        credentials = grpc.ssl_channel_credentials(
            Path(files.ca).read_bytes(), Path(files.key).read_bytes(), Path(files.cert).read_bytes()
        )
        options = [("grpc.use_local_subchannel_pool", 1)]
        channel = stack.enter_context(grpc.secure_channel(self._job.target, credentials, options))
        return channel.unary_unary(self._job.method, bytes, bytes)

    def _call(self, method: "grpc.UnaryUnaryMultiCallable[bytes, bytes]") -> None:
        headers = (("authorization", f"Bearer {self._credentials.token}"),)
        while not self._stopped.is_set():
            try:
                body = self._body.replace(NONCE.encode(), secrets.token_hex(len(NONCE) // 2).encode())
                method(body, timeout=CALL_SECONDS, metadata=headers)
                kind = "succeeded"
            except grpc.RpcError as raised:
                error: Any = raised  # grpcio raises the call itself; its stubs declare only RpcError
                kind = "refused" if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED else "failed"
            with self._lock:
                setattr(self._outcome, kind, getattr(self._outcome, kind) + 1)


def main() -> None:
    job = GreedyJob(**json.loads(sys.stdin.readline()))
    print(json.dumps(asdict(Greedy(job).run())), flush=True)


if __name__ == "__main__":
    main()
