"""The section `limits` of the grants file: how many lines a caller may send per second.

    limits:
      scopes:
        shopper: {lines_per_second: 50, burst: 200}
      workloads:
        spiffe://acme/warehouse: {lines_per_second: 1000}
      keys:
        abcdefgh23456777: {lines_per_second: 10, burst: 5000}

Each caller has a limit of its own. `burst` is the number of lines that it may send at once after a pause; without
`burst`, that is the number for one second. A caller that the section does not name has no limit. A token with several
of these scopes has the highest of their limits.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from shop_common.identity.rate import Rate

_SECTIONS = ("workloads", "scopes", "keys")
_KEYS = ("lines_per_second", "burst")


@dataclass(frozen=True)
class RateLimits:
    """Limits by SPIFFE id, by scope, and by the id of an API key."""

    workloads: Mapping[str, Rate] = field(default_factory=dict)
    scopes: Mapping[str, Rate] = field(default_factory=dict)
    keys: Mapping[str, Rate] = field(default_factory=dict)

    def of_scopes(self, scopes: Iterable[str]) -> Rate | None:
        """Return the highest limit of these scopes, or None if none of them has a limit."""
        return max((self.scopes[scope] for scope in scopes if scope in self.scopes), default=None)

    def of_key(self, caller_name: str) -> Rate | None:
        """Return the limit of the API key of a caller with this name, or None."""
        return self.keys.get(caller_name.removeprefix("key:"))


def parsed(content: Mapping[str, Any] | None) -> RateLimits:
    """Return the limits in a section without faults."""
    return RateLimits(
        **{
            section: {name: _rate(limit) for name, limit in (limits or {}).items()}
            for section, limits in (content or {}).items()
        }
    )


def faults(content: object, granted: Mapping[str, Collection[str]]) -> Iterator[str]:
    """Yield the faults of the section. `granted` has the names in the other sections of the grants file."""
    if content is None:
        return
    if not isinstance(content, dict):
        yield f"limits must be a mapping with {', '.join(_SECTIONS)}"
        return
    for section, limits in content.items():
        if section not in _SECTIONS:
            yield f"limits: {section!r} is not a section: {', '.join(_SECTIONS)} are"
        elif limits is not None and not isinstance(limits, dict):
            yield f"limits: {section} must be a mapping from names to limits"
        else:
            for name, limit in (limits or {}).items():
                if not isinstance(name, str):
                    yield f"limits: {section}: the name {name!r} must be text"
                elif section in granted and name not in granted[section]:
                    yield f"limits: {section}: {name!r} is not in the section {section} of the file"
                yield from _faults_of_limit(f"limits: {section}: {name!r}", limit)


def _faults_of_limit(where: str, limit: object) -> Iterator[str]:
    if not isinstance(limit, dict) or "lines_per_second" not in limit:
        yield f"{where} must be a mapping with lines_per_second, and may have burst"
        return
    for key, value in limit.items():
        if key not in _KEYS:
            yield f"{where} has {key!r}, but may have {' and '.join(_KEYS)} only"
        elif isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value <= 0:
            yield f"{where}: {key} must be a positive number"
        elif key == "burst" and value < 1:
            yield f"{where}: burst must be at least 1"


def _rate(limit: Mapping[str, float]) -> Rate:
    lines_per_second = float(limit["lines_per_second"])
    return Rate(lines_per_second, float(limit.get("burst", max(1.0, lines_per_second))))
