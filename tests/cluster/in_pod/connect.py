"""Connects to each HOST:PORT in the arguments at the same time. Prints those that accept, as JSON.

A test passes the source of this file to Python in a pod.
"""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

# A network plugin either refuses a connection that no policy allows, or drops its packets.
SECONDS = 3.0


def accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), SECONDS).close()
    except OSError:
        return False
    return True


addresses = sys.argv[1:]
with ThreadPoolExecutor(len(addresses)) as threads:
    accepted = list(threads.map(accepts, addresses))
print(json.dumps([address for address, accepts in zip(addresses, accepted, strict=True) if accepts]))
