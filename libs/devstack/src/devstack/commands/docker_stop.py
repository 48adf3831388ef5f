"""Stop the containers gracefully and remove them.

The data stay in volumes for the next start. With --volumes, the data are removed, too.
"""

import argparse

from shopctl.system import compose


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--volumes", action="store_true", help="also remove all data, certificates and passwords")


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed."""
    # Stop the containers of all profiles: a remaining container would keep the network in use.
    compose.show("down", *(["--volumes"] if options.volumes else []), profiles=["*"])
    if not options.volumes:
        print("The data stay for the next start; ./task docker-stop --volumes removes them.")
    return 0
