"""Build the images of the four deployables and of the gateway, and show their sizes.

If only the code has changed, this takes seconds, because the dependencies are in a layer of their own.
"""

import argparse

from shopctl.system import compose
from shopctl.terminal.output import add_json, number, print_json, print_table, whole


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-cache", action="store_true", help="rebuild every layer")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed."""
    compose.show("build", *(["--no-cache"] if options.no_cache else []))
    sizes = compose.image_sizes()
    if options.json:
        print_json(sizes)
    else:
        print_table("images", [whole("image"), number("MB")], [(name, size // 10**6) for name, size in sizes.items()])
    return 0
