"""Reads the grants file of a running process again in the background."""

import threading
from collections.abc import Callable
from pathlib import Path

from shop_common.identity import grants
from shop_common.identity.grants import Grants, GrantsError
from shop_common.telemetry import logs

CHECK_SECONDS = 10.0

_log = logs.get(__name__)


class GrantsFile:
    """The grants file. If its new contents are invalid, they are not used, and their faults are logged once."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises GrantsError."""
        self._contents = grants.contents(path)
        self.grants = grants.parsed(path, self._contents)
        self._path = path
        self._fault = ""
        self._stopped = threading.Event()

    def start(self, on_change: Callable[[Grants], None]) -> None:
        """Start reading the file every CHECK_SECONDS. Calls `on_change` with new grants that are valid."""
        threading.Thread(target=self._run, args=(on_change,), name="grants", daemon=True).start()

    def stop(self) -> None:
        """Stop checking the file."""
        self._stopped.set()

    def _run(self, on_change: Callable[[Grants], None]) -> None:
        while not self._stopped.wait(CHECK_SECONDS):
            self._check(on_change)

    def _check(self, on_change: Callable[[Grants], None]) -> None:
        try:
            contents = grants.contents(self._path)
            if contents == self._contents:
                self._fault = ""
                return  # the usual case: parsing YAML is slow
            found = grants.parsed(self._path, contents)
        except GrantsError as error:
            if str(error) != self._fault:
                self._fault = str(error)
                _log.error("the new grants are not used", error=self._fault)
            return
        self._fault, self._contents = "", contents
        if found != self.grants:
            self.grants = found
            on_change(found)
            _log.info("grants reloaded", path=str(self._path))
