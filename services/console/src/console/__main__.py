"""`python -m console`."""

from shop_common.environment import startup

startup.prepare()

from console.main import main  # noqa: E402 - takes seconds, in which a signal is heard already

main()
