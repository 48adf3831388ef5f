"""The settings with which each process runs, from its metrics port. Processes hide their secrets themselves."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from console.settings import Watched
from shop_common.telemetry.metrics_server import SETTINGS_PATH
from shopctl.watch.scrape import get

_BYTES_MAX = 256 * 1024


@dataclass(frozen=True)
class ProcessSettings:
    """The settings of a process by name, or the reason why they are unknown."""

    process: str
    values: Mapping[str, str]
    unknown: str = ""


class SettingsReader:
    """Reads the settings of the watched processes. `own` are those of this process."""

    def __init__(self, watched: Sequence[Watched], own: Mapping[str, str]) -> None:
        self._watched = watched
        self._own = ProcessSettings("console", own)

    async def read(self) -> tuple[ProcessSettings, ...]:
        """Ask all processes."""
        found = await asyncio.gather(*(asyncio.to_thread(_read, one) for one in self._watched))
        return *found, self._own


def _read(process: Watched) -> ProcessSettings:
    if process.metrics is None:
        return ProcessSettings(process.name, {}, "The console knows no metrics port of this process. See PROCESSES.")
    try:
        values = json.loads(get(process.metrics, SETTINGS_PATH, _BYTES_MAX))
    except (OSError, ValueError):
        return ProcessSettings(process.name, {}, "The process does not respond on its metrics port.")
    return ProcessSettings(process.name, {str(name): str(value) for name, value in values.items()})
