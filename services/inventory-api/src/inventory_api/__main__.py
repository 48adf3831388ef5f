"""Runs inventory-api: `python -m inventory_api`."""

from shop_common.environment import startup

startup.prepare()

from inventory_api.main import main  # noqa: E402 - takes a second, and signals are handled already

raise SystemExit(main())
