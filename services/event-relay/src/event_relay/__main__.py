"""`python -m event_relay`."""

from shop_common.environment import startup

startup.prepare()

from event_relay.main import main  # noqa: E402 - takes a second, in which a signal is heard already

main()
