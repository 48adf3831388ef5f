"""The commands that operate the system of `./task dev` or `./task docker-run` on this machine.

    ./task COMMAND [OPTION ...]

The commands that work for a system on any machine are in shopctl.
"""

import sys
from collections.abc import Sequence

from shopctl.terminal import command_line
from shopctl.terminal.command_line import Command

COMMANDS = {
    "stop": Command("end the running dev, as Ctrl-C in its terminal does", "devstack.commands.stop"),
    "restart": Command(
        "restart a process gracefully, and wait until it serves again", "devstack.commands.restart", {"graceful": True}
    ),
    "kill": Command("kill a process, and wait until it serves again", "devstack.commands.restart", {"graceful": False}),
    "freeze": Command("freeze a process (SIGSTOP)", "devstack.commands.freeze", {"freezes": True}),
    "thaw": Command("let a frozen process continue (SIGCONT)", "devstack.commands.freeze", {"freezes": False}),
    "logs": Command("show the logs of the processes, filtered, also after dev has ended", "devstack.commands.logs"),
    "db-init": Command("bring both databases to the newest schema", "devstack.commands.db_init"),
    "db-reset": Command(
        "drop everything in both databases and bring them to the newest schema", "devstack.commands.db_reset"
    ),
    "certificates": Command("make a CA, and a certificate for each workload", "devstack.commands.certificates"),
    "docker-build": Command("build the images and show their sizes", "devstack.commands.docker_build"),
    "docker-run": Command("start everything in containers", "devstack.commands.docker_run"),
    "docker-stop": Command("stop the containers and keep the data", "devstack.commands.docker_stop"),
    "cluster-deploy": Command(
        "build, and deploy everything to a Kubernetes cluster", "devstack.commands.cluster_deploy"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return command_line.run(COMMANDS, "Operate the system on this machine.", arguments)


if __name__ == "__main__":
    sys.exit(main())
