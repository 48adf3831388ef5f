"""Cuts the node off: the interface with the address in the first argument sends nothing for the seconds in the second.

A test passes the source of this file to Python in a pod with the network of its node and the capability NET_ADMIN. The
pod itself ends the cut, because nobody else reaches the node. Prints the times of the begin and of the end, as JSON.
"""

import fcntl
import json
import socket
import struct
import sys
import time

SIOCGIFADDR = 0x8915
RTM_NEWQDISC, RTM_DELQDISC, TCA_KIND = 36, 37, 1
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE, NLMSG_ERROR = 0x1, 0x4, 0x100, 0x400, 2
ROOT, HANDLE = 0xFFFFFFFF, 0x00010000

HEADER, MESSAGE, ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("=BxxxiIII"), struct.Struct("=HH")
DISCIPLINE = b"blackhole\0"
"""The queueing discipline of Linux that drops every packet."""


def interface(address: str) -> int:
    """Return the index of the interface with this address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for index, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(any_socket, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:
                continue  # it has no address
            if socket.inet_ntoa(found[20:24]) == address:
                return index
    raise LookupError(address)


def change(kind: int, flags: int, index: int) -> None:
    """Add or remove the queueing discipline of an interface. Raises OSError."""
    attribute = ATTRIBUTE.pack(ATTRIBUTE.size + len(DISCIPLINE), TCA_KIND) + DISCIPLINE
    attribute += bytes(-len(attribute) % 4)
    body = MESSAGE.pack(socket.AF_UNSPEC, index, HANDLE, ROOT, 0) + attribute
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | NLM_F_ACK | flags, 1, 0) + body)
        response = netlink.recv(65_536)
    _, response_kind, _, _, _ = HEADER.unpack_from(response)
    (error,) = struct.unpack_from("=i", response, HEADER.size)
    assert response_kind == NLMSG_ERROR
    if error:
        raise OSError(-error, "the kernel refuses the discipline")


address, seconds = sys.argv[1:]
index = interface(address)
began = time.time()
change(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, index)
try:
    time.sleep(float(seconds))
finally:
    change(RTM_DELQDISC, 0, index)
print(json.dumps([began, time.time()]))
