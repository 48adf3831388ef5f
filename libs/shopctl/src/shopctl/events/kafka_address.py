"""Print the broker address of the running system.

Example with a Kafka client: kcat -b $(./task kafka-address) -L
"""

import argparse

from shopctl.system import target


def configure(parser: argparse.ArgumentParser) -> None:
    del parser


def run(_: argparse.Namespace) -> int:
    """Print the address. Raises NotRunning."""
    print(target.system().bootstrap)
    return 0
