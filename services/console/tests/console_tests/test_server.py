"""The port of the site."""

import socket

import pytest

from console.settings import ConsoleSettings
from console.site import server


@pytest.mark.parametrize("listen_host", ["[::]", "127.0.0.1"])
def test_the_site_listens_for_ipv4_also_if_it_listens_on_every_address(listen_host: str) -> None:
    settings = ConsoleSettings(listen_host=listen_host, http_port=0, sign_in=True, public_url="http://localhost:50080")

    with server.opened(settings) as listener:
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]), timeout=30).close()
