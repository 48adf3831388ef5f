"""Makes the dashboards in dashboards/ from business.py and service.py.

    python deploy/grafana/make_dashboards.py [--check]

With --check nothing is written, and it fails when they are not as it would make them.
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
    parser = argparse.ArgumentParser(description="Make Grafana's dashboards.")
    parser.add_argument("--check", action="store_true", help="fail when they are not as this would make them")
    options = parser.parse_args()
    for name, content in DASHBOARDS.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        path = FOLDER / name
        if not options.check:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{path} is not as make_dashboards.py makes it; run it")


if __name__ == "__main__":
    main()
