"""Notices that this process is the child of a fork.

gRPC's threads do not exist in the child, and another thread of the parent may have held a lock. So the child makes new
connections and new locks.
"""

import os
import threading


class Process:
    """What clients need to know about their process."""

    def __init__(self) -> None:
        self.generation = 0
        """The number of forks between the process that imported this module and this process."""
        self.connecting = threading.Lock()
        """Held while a client connects or closes."""
        self.inherited: list[object] = []
        """Connections of parent processes. They stay referenced: gRPC's destructors would wait for missing threads."""

    def begin_child(self) -> None:
        self.generation += 1
        self.connecting = threading.Lock()


PROCESS = Process()

if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=PROCESS.begin_child)
