"""Start everything in containers, and show the addresses. Builds the images whose code has changed.

A running container is replaced only if its image or its settings have changed. The file .env sets the ports and the
image tag, see .env.example.
"""

import argparse

from shopctl.system import compose
from shopctl.system.layout import CONSOLE, INVENTORY_API, ORDER_API
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import console, print_table, whole

WAIT_SECONDS = 600


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scale",
        action="append",
        default=[],
        metavar="SERVICE=N",
        help="replicas of a service; may be repeated",
    )
    parser.add_argument(
        "--profile",
        action="append",
        default=[],
        choices=["console", "observability", "load"],
        help="also start the console, or Jaeger, Prometheus and Grafana, or the load generator; may be repeated",
    )


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed."""
    scale = [word for one in options.scale for word in ("--scale", one)]
    compose.show("up", "--build", "--wait", "--wait-timeout", str(WAIT_SECONDS), *scale, profiles=options.profile)
    found = compose.running()
    if found is None:
        raise CommandFailed("the containers ended right after their start; see `docker compose logs`")
    rows = [(name, found.address(name)) for name in (INVENTORY_API, ORDER_API, "postgres", "kafka")]
    if CONSOLE in options.profile:
        # Show this name and not the IP address, because the console accepts no other host.
        rows.append((CONSOLE, f"http://{found.address(CONSOLE).replace('127.0.0.1', 'localhost')}"))
    if "observability" in options.profile:
        rows += [(name, f"http://{found.address(name)}") for name in ("grafana", "prometheus", "jaeger")]
    print_table("listening", ["", whole("address")], rows)
    console().print(
        "\nThe APIs and Kafka use plain text at these ports, without a token or a login (.env.example has options).\n"
        "PostgreSQL needs TLS and a login, which the commands of ./task find (docs/security.md)."
    )
    console().print(
        "\nTry: ./task test-grpc, ./task status, docker compose logs --follow; ./task docker-stop stops all.",
        style="dim",
    )
    return 0
