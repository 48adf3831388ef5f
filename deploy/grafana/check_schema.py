"""Checks the dashboards against Grafana's own types. Needs npm and its registry.

    python deploy/grafana/check_schema.py

Grafana accepts a dashboard with a misspelt field and ignores the field. Its schema is published as TypeScript types,
and the compiler rejects object literals with unknown fields or values. The schema does not cover the queries;
tests/observability runs them.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TYPESCRIPT = "typescript@5.6.3"

DASHBOARDS = Path(__file__).with_name("dashboards")
COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"

_TYPES = "./node_modules/@grafana/schema/dist/types/raw"
# A dashboard may leave out fields with defaults, at any depth, and writes an enum as its text.
_HEAD = f"""\
import type {{Dashboard}} from '{_TYPES}/dashboard/x/dashboard_types.gen';
import type * as timeseries from '{_TYPES}/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen';
import type * as stat from '{_TYPES}/composable/stat/panelcfg/x/StatPanelCfg_types.gen';
type Written<T> = T extends object ? {{[K in keyof T]?: Written<T[K]>}} : T extends string ? T | `${{T}}` : T;
"""
_INSTALL = "npm install --silent --no-audit --no-fund --ignore-scripts"
_TSC = "npx tsc --noEmit --strict --skipLibCheck --target es2022 --module nodenext dashboards.ts"


def main() -> int:
    """Print all errors and return the exit code."""
    schema = f"@grafana/schema@{_version()}"
    dashboards = [json.loads(path.read_text()) for path in sorted(DASHBOARDS.iterdir())]
    literals = [literal for dashboard in dashboards for literal in _literals(dashboard)]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "dashboards.ts").write_text(_HEAD + "\n".join(literals))
        subprocess.run([*_INSTALL.split(), schema, TYPESCRIPT], cwd=folder, check=True)
        code = subprocess.run(_TSC.split(), cwd=folder, check=False).returncode
    if code == 0:
        sys.stdout.write(f"{len(dashboards)} dashboards match {schema}\n")
    return code


def _version() -> str:
    """Return the version of Grafana in docker-compose.yml."""
    found = re.search(r"image: grafana/grafana:(\S+)", COMPOSE.read_text())
    if found is None:
        raise SystemExit(f"{COMPOSE} has no Grafana image")
    return found[1]


def _literals(dashboard: dict[str, Any]) -> Iterator[str]:
    yield _literal(dashboard, "Dashboard")
    for panel in dashboard["panels"]:
        # The dashboard type does not cover the options of a panel type.
        if panel["type"] != "row":
            yield _literal(panel["options"], f"{panel['type']}.Options")
        if custom := panel.get("fieldConfig", {}).get("defaults", {}).get("custom"):
            yield _literal(custom, f"{panel['type']}.FieldConfig")


def _literal(value: object, kind: str) -> str:
    return f"({json.dumps(value)}) satisfies Written<{kind}>;"


if __name__ == "__main__":
    raise SystemExit(main())
