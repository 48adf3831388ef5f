"""The embedded development broker: librdkafka's own in-memory cluster, as a process of its own.

    python -m devstack.servers.embedded_broker --run-file PATH [--port PORT]

It speaks Kafka's protocol on a port of the loopback, and writes its address to the run file. It keeps nothing over a
restart, and about 5 MB a partition, the oldest forgotten first: never more than development.
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
    parser.add_argument("--run-file", type=Path, required=True, help="where to write its address")
    parser.add_argument("--topic", action="append", metavar="NAME", help="a topic to make (default: the shop's)")
    parser.add_argument("--partitions", type=int, default=PARTITIONS, help="of those topics (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="where to listen; 0 lets the system choose (default)")
    options = parser.parse_args(arguments)

    # Blocked before the broker's threads exist, so that none of them takes a signal that sigwait is for.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        address = start(options.topic or TOPICS, options.partitions, options.port)
    except OSError as failure:
        print(f"the broker can't listen on port {options.port}: {failure.strerror}", flush=True)
        return 1
    _write_at_once(options.run_file, address)
    print(f"broker ready at {address}", flush=True)
    signal.sigwait(signals)
    options.run_file.unlink(missing_ok=True)
    return 0


def start(topics: Sequence[str], partitions: int, port: int = 0) -> str:
    """Start a cluster of one broker that lives as long as this process; its address. Raises OSError for a busy port."""
    # confluent-kafka offers the cluster only as a client's setting. Through the C API (rdkafka_mock.h) it takes
    # the number of partitions, too, and lets a consumer group begin at once instead of after three seconds.
    library = ctypes.CDLL(confluent_kafka.cimpl.__file__)
    cluster = _function(library, "rd_kafka_mock_cluster_new", ctypes.c_void_p)(_client(library), 1)
    if not cluster:
        raise RuntimeError("librdkafka's broker does not start")
    cluster = ctypes.c_void_p(cluster)
    _function(library, "rd_kafka_mock_group_initial_rebalance_delay_ms", None)(cluster, 0)
    bootstraps: bytes = _function(library, "rd_kafka_mock_cluster_bootstraps", ctypes.c_char_p)(cluster)
    address = bootstraps.decode()
    if port:
        address = _move(library, cluster, address, port)
    create = _function(library, "rd_kafka_mock_topic_create", ctypes.c_int)
    for topic in topics:
        if code := create(cluster, topic.encode(), partitions, 1):
            raise RuntimeError(f"the broker refuses the topic {topic} with {partitions} partitions (code {code})")
    return address


def _move(library: ctypes.CDLL, cluster: ctypes.c_void_p, address: str, port: int) -> str:
    """Let the broker listen on that port instead, before anybody knows the other; its new address."""
    # librdkafka lets the system choose and has no setting for it. It polls its listener by number of descriptor and
    # accepts from it, so another socket can be put in its place; what clients are told is set by a call of the C API.
    host, _, chosen = address.rpartition(":")
    with socket.create_server((host, port)) as listener:
        os.dup2(listener.fileno(), _descriptor_of(host, int(chosen)))
    _function(library, "rd_kafka_mock_broker_set_host_port", None)(cluster, _BROKER, host.encode(), port)
    return f"{host}:{port}"


def _descriptor_of(host: str, port: int) -> int:
    """Of this process, the socket that is bound there."""
    for descriptor in (int(entry.name) for entry in Path("/dev/fd").iterdir()):
        # What is no socket, or is closed by now, is none of those.
        with suppress(OSError), socket.fromfd(descriptor, socket.AF_INET, socket.SOCK_STREAM) as bound:
            if bound.getsockname() == (host, port):
                return descriptor
    raise RuntimeError(f"librdkafka's broker does not listen on {host}:{port}")


def _client(library: ctypes.CDLL) -> ctypes.c_void_p:
    """The client that carries the cluster. It has no broker of its own, and need not complain about that."""
    conf = ctypes.c_void_p(_function(library, "rd_kafka_conf_new", ctypes.c_void_p)())
    error = ctypes.create_string_buffer(512)
    size = ctypes.c_size_t(len(error))
    _function(library, "rd_kafka_conf_set", ctypes.c_int)(conf, b"log_level", b"4", error, size)
    new = _function(library, "rd_kafka_new", ctypes.c_void_p)
    client = new(_RD_KAFKA_PRODUCER, conf, error, size)
    if not client:
        raise RuntimeError(f"librdkafka does not start: {error.value.decode()}")
    return ctypes.c_void_p(client)


def _function(library: ctypes.CDLL, name: str, result: Any) -> Callable[..., Any]:
    """Of the C API; without `result` ctypes would cut its pointers to 32 bits."""
    function = library[name]
    function.restype = result
    return function


def _write_at_once(path: Path, text: str) -> None:
    """Whoever reads the file sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(text)
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
