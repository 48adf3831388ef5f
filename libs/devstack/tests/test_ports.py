"""Searches for free ports, in one process and in several at once."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from devstack.ports import free_ports, is_busy

# Prints 1,000 ports and keeps them until its input ends.
SEARCH = "import sys; from devstack.ports import free_ports; print(*free_ports(1000), flush=True); sys.stdin.read()"


def test_ports_are_free_and_different() -> None:
    ports = free_ports(20)

    assert len(set(ports)) == 20
    assert not any(is_busy(port) for port in ports)


def test_no_port_is_given_to_two_searches_of_a_process() -> None:
    with ThreadPoolExecutor(4) as threads:
        found = [port for ports in threads.map(lambda _: free_ports(300), range(4)) for port in ports]

    assert len(set(found)) == len(found)


def test_no_port_is_given_to_two_processes_and_an_ended_one_gives_its_ports_back() -> None:
    def search() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", SEARCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ports(process: "subprocess.Popen[str]") -> list[int]:
        assert process.stdout is not None
        return [int(port) for port in process.stdout.readline().split()]

    for _ in range(3):  # without claims, three searches for 1,000 of 17,000 ports are all but certain to share some
        with search() as first, search() as second, search() as third:
            found = [*ports(first), *ports(second), *ports(third)]
            assert len(found) == 3000
            assert len(set(found)) == len(found)
            for process in (first, second, third):
                process.kill()  # no process can tidy up before this end
