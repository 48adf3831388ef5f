"""`python -m reservation_reaper`."""

from shop_common.environment import startup

startup.prepare()

from reservation_reaper.main import main  # noqa: E402 - takes a second, in which a signal is heard already

raise SystemExit(main())
