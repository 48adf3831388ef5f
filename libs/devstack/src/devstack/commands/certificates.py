"""Make certificates for mutual TLS between the processes on this machine.

The first run makes a CA. Every run makes a new certificate for each workload, signed by that CA and valid for 90 days.
Running processes reload their certificates. To get a new CA, delete the folder before the next run. With `--namespace`,
the certificates can be used in a Kubernetes cluster too (docs/kubernetes.md).
"""

import argparse
from pathlib import Path

from devstack import certificates


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--folder", type=Path, default=certificates.FOLDER, help="the folder of the certificates (default: %(default)s)"
    )
    parser.add_argument(
        "--namespace", help="make the certificates also valid for the workloads' names in this Kubernetes namespace"
    )


def run(options: argparse.Namespace) -> int:
    for workload, files in certificates.make(options.folder, namespace=options.namespace).items():
        print(f"{files.folder}: {certificates.spiffe_id(workload)}")
    return 0
