"""Make certificates for mutual TLS between the processes on this machine.

The first run makes a CA. Every run makes a new certificate, valid for 90 days, for each workload, signed by that CA.
Running processes reload them. Delete the folder for a new CA.
"""

import argparse
from pathlib import Path

from devstack import certificates


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, default=certificates.FOLDER, help="where to write them (default: %(default)s)"
    )


def run(options: argparse.Namespace) -> int:
    for workload, files in certificates.make(options.folder).items():
        print(f"{files.folder}: {certificates.spiffe_id(workload)}")
    return 0
