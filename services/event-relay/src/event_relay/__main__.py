"""`python -m event_relay`."""

from event_relay.main import main

main()
