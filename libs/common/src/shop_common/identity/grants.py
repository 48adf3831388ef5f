"""Reads the grants file: the permissions of workloads and of the scopes of tokens, and the limits of callers.

    workloads:
      spiffe://shop/order-api: [stock.reserve, delegate]
      spiffe://acme/warehouse: {permissions: [inventory.read, inventory.write], tenant: acme}
      spiffe://shop/reservation-reaper: [maintenance]
    scopes:
      shopper: [orders.read, orders.write]
      staff: [inventory.read, inventory.write, orders.read, orders.any]
    limits:
      scopes:
        shopper: {lines_per_second: 50, burst: 200}

The contract (the protos) defines the permission that each RPC needs. The grants file is part of the deployment. A
workload without `tenant` belongs to the tenant `default`. `rate_limits` describes the section `limits`.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shop_common.environment.files import FileUnusable, bounded_bytes
from shop_common.identity import rate_limits, tenant
from shop_common.identity.rate_limits import RateLimits
from shop_common.identity.rules import PERMISSIONS

_SECTIONS = ("workloads", "scopes", "limits")
_WORKLOAD_KEYS = ("permissions", "tenant")
_BYTES_MAX = 1024 * 1024


class GrantsError(Exception):
    """The file cannot be read or is invalid. The message names every fault."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The permissions and the tenant of a workload."""

    permissions: frozenset[str] = frozenset()
    tenant: str = tenant.DEFAULT


@dataclass(frozen=True)
class Grants:
    """Grants by SPIFFE id, permissions by scope, and limits."""

    workloads: Mapping[str, Workload] = field(default_factory=dict)
    scopes: Mapping[str, frozenset[str]] = field(default_factory=dict)
    limits: RateLimits = field(default_factory=RateLimits)

    def of_workload(self, spiffe_id: str) -> Workload:
        """Return the grant of a workload; one without permissions if the file does not name it."""
        return self.workloads.get(spiffe_id, Workload())

    def of_scopes(self, scopes: Iterable[str]) -> frozenset[str]:
        """Return the permissions of all these scopes together. A scope that the file does not name grants nothing."""
        return frozenset().union(*(self.scopes.get(scope, frozenset()) for scope in scopes))


def read(path: Path) -> Grants:
    """Read the file. Raises GrantsError."""
    return parsed(path, contents(path))


def contents(path: Path) -> bytes:
    """Return the unparsed contents of the file. Raises GrantsError."""
    try:
        return bounded_bytes(path, _BYTES_MAX)
    except FileUnusable as error:
        raise GrantsError(str(error)) from error


def parsed(path: Path, data: bytes) -> Grants:
    """Parse the contents of the file. Raises GrantsError, with `path` in its message."""
    try:
        content: Any = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GrantsError(f"{str(path)!r} is not YAML: {' '.join(str(error).split())}") from error
    faults = list(_faults(content))
    if faults:
        raise GrantsError(f"{str(path)!r}: " + "; ".join(faults))
    return Grants(
        workloads={name: _workload(granted) for name, granted in (content.get("workloads") or {}).items()},
        scopes={name: frozenset(granted or ()) for name, granted in (content.get("scopes") or {}).items()},
        limits=rate_limits.parsed(content.get("limits")),
    )


def _workload(granted: Any) -> Workload:
    if not isinstance(granted, dict):
        return Workload(frozenset(granted or ()))
    return Workload(frozenset(granted.get("permissions") or ()), granted.get("tenant", tenant.DEFAULT))


def _faults(content: object) -> Iterator[str]:
    if not isinstance(content, dict):
        yield f"must be a mapping with {', '.join(_SECTIONS)}"
        return
    granted_names = {section: content.get(section) or () for section in ("workloads", "scopes")}
    for section, names in content.items():
        if section not in _SECTIONS:
            yield f"{section!r} is not a section: {', '.join(_SECTIONS)} are"
        elif section == "limits":
            yield from rate_limits.faults(names, granted_names)
        elif names is not None and not isinstance(names, dict):
            yield f"{section} must be a mapping from names to lists of permissions"
        else:
            for name, granted in (names or {}).items():
                if section == "workloads" and isinstance(granted, dict):
                    yield from _faults_of_mapping(name, granted)
                    yield from _faults_of_grant(section, name, granted.get("permissions"))
                else:
                    yield from _faults_of_grant(section, name, granted)


def _faults_of_mapping(name: object, granted: Mapping[object, object]) -> Iterator[str]:
    for key in granted:
        if key not in _WORKLOAD_KEYS:
            yield f"workloads: {name!r} has {key!r}, but may have {' and '.join(_WORKLOAD_KEYS)} only"
    if not tenant.is_valid(granted.get("tenant", tenant.DEFAULT)):
        yield f"workloads: the tenant of {name!r} must be {tenant.FORM}"


def _faults_of_grant(section: str, name: object, granted: object) -> Iterator[str]:
    if not isinstance(name, str):
        yield f"{section}: the name {name!r} must be text"
    elif section == "workloads" and not name.startswith("spiffe://"):
        yield f"{section}: {name!r} must be a SPIFFE id, spiffe://TRUST-DOMAIN/PATH"
    if granted is not None and not isinstance(granted, list):
        yield f"{section}: the permissions of {name!r} must be a list"
        return
    for permission in granted or ():
        if not isinstance(permission, str) or permission not in PERMISSIONS:
            yield f"{section}: {name!r} is granted {permission!r}, which is not a permission: {', '.join(PERMISSIONS)}"
