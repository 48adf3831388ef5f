"""The commands for the system that `./task dev` or `./task docker-run` starts on this machine.

    ./task COMMAND [OPTION ...]

The commands for a system wherever it runs are in shopctl.
"""

import sys
from collections.abc import Sequence

from shopctl.terminal import command_line
from shopctl.terminal.command_line import Command

COMMANDS = {
    "stop": Command("end the dev that runs here, as Ctrl-C in its terminal does", "devstack.commands.stop"),
    "restart": Command(
        "end a process in its own time, and wait until it serves again", "devstack.commands.restart", {"gently": True}
    ),
    "kill": Command("kill a process, and wait until it serves again", "devstack.commands.restart", {"gently": False}),
    "freeze": Command("stop a process in the middle of what it does", "devstack.commands.freeze", {"freezes": True}),
    "thaw": Command("let a frozen process go on", "devstack.commands.freeze", {"freezes": False}),
    "logs": Command("show what the processes printed, filtered, also after dev has ended", "devstack.commands.logs"),
    "db-init": Command("bring both databases to the newest schema", "devstack.commands.db_init"),
    "db-reset": Command(
        "drop everything in both databases and bring them to the newest schema", "devstack.commands.db_reset"
    ),
    "certificates": Command("make a CA, and a certificate for each workload", "devstack.commands.certificates"),
    "docker-build": Command("build the images, and show their sizes", "devstack.commands.docker_build"),
    "docker-run": Command("start everything in containers", "devstack.commands.docker_run"),
    "docker-stop": Command("stop the containers; the data stay", "devstack.commands.docker_stop"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    return command_line.run(COMMANDS, "Look after the system that runs on this machine.", arguments)


if __name__ == "__main__":
    sys.exit(main())
