"""Stop and remove the containers, after each has finished what it was doing.

The data stay in volumes, and are there at the next start; --volumes removes them too.
"""

import argparse

from shopctl.system import compose


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--volumes", action="store_true", help="remove all data, and the passwords")


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed."""
    # Whatever profiles they were started with: what is left would keep their network.
    compose.show("down", *(["--volumes"] if options.volumes else []), profiles=["*"])
    if not options.volumes:
        print("The data are kept for the next start; ./task docker-stop --volumes removes them.")
    return 0
