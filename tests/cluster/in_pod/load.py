"""Generates load until standard input closes. Prints `started`, and at the end its calls as JSON.

A test passes the source of this file to Python in a pod, so it imports only what the image of shopctl has. The
settings TLS_CERT_PATH, TLS_KEY_PATH and TLS_CA_PATH name its certificate. Each call is
[start in seconds since the epoch, duration in seconds, reason of the error or ""].
"""

import json
import sys
import threading
import time
from typing import Any

from shop_common.environment.process_settings import CallerSettings
from shop_common.environment.settings import read
from shop_common.errors import ShopError
from shop_common.rpc.tls import client_certificates
from shopctl.client import Shop
from shopctl.load.generator import LoadGenerator

RATE = 20.0
SECONDS_MAX = 600.0
CALLS_BEFORE_STARTED = 100

calls: list[tuple[float, float, str]] = []


class MeasuredShop(Shop):
    """A client of both APIs that records each call."""

    def call(self, *arguments: Any, **options: Any) -> Any:
        began, reason = time.time(), ""
        try:
            return super().call(*arguments, **options)
        except ShopError as error:
            reason = error.reason
            raise
        finally:
            calls.append((began, time.time() - began, reason))


def main() -> None:
    closed = threading.Event()

    def wait_for_the_end() -> None:
        # The test or its kubectl closes the other end of the pipe, even if it is killed.
        sys.stdin.read()
        closed.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    inventory, orders = sys.argv[1:]
    certificates = client_certificates(read(CallerSettings))
    with MeasuredShop.connect(inventory, orders, certificates) as shop, LoadGenerator(shop, RATE):
        while len(calls) < CALLS_BEFORE_STARTED and not closed.wait(0.1):
            pass
        print("started", flush=True)
        closed.wait(SECONDS_MAX)
    print(json.dumps(calls), flush=True)


main()
