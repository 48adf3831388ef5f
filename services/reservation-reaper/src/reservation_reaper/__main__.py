"""`python -m reservation_reaper`."""

from shop_common.environment import startup

startup.prepare()

from reservation_reaper.main import main  # noqa: E402 - these imports take a second, and signals must be handled by then

raise SystemExit(main())
