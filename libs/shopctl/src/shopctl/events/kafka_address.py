"""Print the address of the broker of what runs here.

For any Kafka client: kcat -b $(./task kafka-address) -L
"""

import argparse

from shopctl.system import target


def configure(parser: argparse.ArgumentParser) -> None:
    del parser


def run(_: argparse.Namespace) -> int:
    """Raises NotRunning."""
    print(target.system().bootstrap)
    return 0
