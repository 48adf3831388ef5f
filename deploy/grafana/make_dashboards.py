"""Generates the dashboards in dashboards/ from business.py and service.py.

    python deploy/grafana/make_dashboards.py [--check]

With --check it writes nothing, and fails if the files differ from the generated ones.
"""

import argparse
import json
import sys
from pathlib import Path

import business
import service
from panels import dashboard

FOLDER = Path(__file__).with_name("dashboards")

DASHBOARDS = {
    "shop-business.json": dashboard("shop-business", "Shop: business", business.ROWS),
    "shop-service.json": dashboard("shop-service", "Shop: service", service.ROWS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Generate the Grafana dashboards.")
    parser.add_argument("--check", action="store_true", help="fail if the files differ from the generated ones")
    options = parser.parse_args()
    for name, content in DASHBOARDS.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        path = FOLDER / name
        if not options.check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path} differs from the generated dashboard: run make_dashboards.py")


if __name__ == "__main__":
    main()
