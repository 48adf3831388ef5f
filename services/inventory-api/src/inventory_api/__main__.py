"""`python -m inventory_api`."""

from shop_common.environment import startup

startup.prepare()

from inventory_api.main import main  # noqa: E402 - takes a second, in which a signal is heard already

raise SystemExit(main())
