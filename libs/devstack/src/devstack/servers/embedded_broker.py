"""Runs the embedded development broker: librdkafka's in-memory cluster, in a process of its own.

    python -m devstack.servers.embedded_broker --run-file PATH [--port PORT]

It serves Kafka's protocol on a loopback port, and writes its address to the run file. It keeps about 5 MB per partition
and drops the oldest messages. At a restart it loses everything. Use it for development only.
"""

import argparse
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import confluent_kafka.cimpl

from shopctl.events.topics import PARTITIONS, TOPICS

_RD_KAFKA_PRODUCER = 0
_BROKER = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        prog="python -m devstack.servers.embedded_broker", description="An in-memory Kafka broker."
    )
    parser.add_argument("--run-file", type=Path, required=True, help="the file for the broker's address")
    parser.add_argument(
        "--topic", action="append", metavar="NAME", help="a topic to create (default: the shop's topics)"
    )
    parser.add_argument(
        "--partitions", type=int, default=PARTITIONS, help="partitions per topic (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 means a free one (default)")
    options = parser.parse_args(arguments)

    # Block the signals before the broker's threads start, so that only sigwait receives them.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        address = start(options.topic or TOPICS, options.partitions, options.port)
    except OSError as failure:
        print(f"the broker cannot listen on port {options.port}: {failure.strerror}", flush=True)
        return 1
    _write_atomically(options.run_file, address)
    print(f"broker ready at {address}", flush=True)
    signal.sigwait(signals)
    options.run_file.unlink(missing_ok=True)
    return 0


def start(topics: Sequence[str], partitions: int, port: int = 0) -> str:
    """Start a cluster of one broker that runs until this process ends. Returns its address.

    Raises OSError if the port is busy.
    """
    # confluent-kafka offers the cluster only through a client setting. The C API (rdkafka_mock.h) also sets the number
    # of partitions, and lets a consumer group start at once instead of after three seconds.
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    cluster = _function(library, "rd_kafka_mock_cluster_new", ctypes.c_void_p)(_client(library), 1)
    if not cluster:
        raise RuntimeError("librdkafka's broker did not start")
    cluster = ctypes.c_void_p(cluster)
    _function(library, "rd_kafka_mock_group_initial_rebalance_delay_ms", None)(cluster, 0)
    bootstraps: bytes = _function(library, "rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p)(cluster)
    address = bootstraps.decode()
    if port:
        address = _move(library, cluster, address, port)
    create = _function(library, "rd_kafka_mock_topic_create", ctypes.c_int)
    for topic in topics:
        if code := create(cluster, topic.encode(), partitions, 1):
            raise RuntimeError(f"the broker rejects the topic {topic} with {partitions} partitions (code {code})")
    return address


def _move(library: ctypes.CDLL, cluster: ctypes.c_void_p, address: str, port: int) -> str:
    """Move the broker to this port before any client knows its address. Returns the new address."""
    # librdkafka always listens on a port that the system chooses. It refers to its listening socket by a descriptor,
    # so dup2 can replace the socket behind this descriptor. A call of the C API sets the address that clients receive.
    host, _, chosen = address.rpartition(":")
    with socket.create_server((host, port)) as listener:
        os.dup2(listener.fileno(), _descriptor_of(host, int(chosen)))
    _function(library, "rd_kafka_mock_broker_set_host_port", None)(cluster, _BROKER, host.encode(), port)
    return f"{host}:{port}"


def _descriptor_of(host: str, port: int) -> int:
    """Return the descriptor of this process's socket that is bound to the address."""
    for descriptor in (int(entry.name) for entry in Path("/dev/fd").iterdir()):
        # Skip descriptors that are closed or not sockets.
        with suppress(OSError), socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as bound:
            if bound.getsockname() == (host, port):
                return descriptor
    raise RuntimeError(f"librdkafka's broker does not listen on {host}:{port}")


def _client(library: ctypes.CDLL) -> ctypes.c_void_p:
    """Return the client that owns the cluster. Its log level hides the warning that it has no broker."""
    conf = ctypes.c_void_p(_function(library, "rd_kafka_conf_new", ctypes.c_void_p)())
    error = ctypes.create_string_buffer(512)
    size = ctypes.c_size_t(len(error))
    _function(library, "rd_kafka_conf_set", ctypes.c_int)(conf, b"log_level", b"4", error, size)
    new = _function(library, "rd_kafka_new", ctypes.c_void_p)
    client = new(_RD_KAFKA_PRODUCER, conf, error, size)
    if not client:
        raise RuntimeError(f"librdkafka did not start: {error.value.decode()}")
    return ctypes.c_void_p(client)


def _function(library: ctypes.CDLL, name: str, result: Any) -> Callable[..., Any]:
    """Return a function of the C API. Without `result`, ctypes would truncate pointers to 32 bits."""
    function = library[name]
    function.restype = result
    return function


def _write_atomically(path: Path, text: str) -> None:
    """Write the file atomically: a reader never sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
