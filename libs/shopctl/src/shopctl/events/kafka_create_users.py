"""Create users of the broker, who log in with SCRAM-SHA-512, or set new passwords for them.

Each argument is USER=FILE, and the file contains the password:

  ./task kafka-create-users event-relay=relay-password order-api=order-api-password

A new password takes effect for new logins, and open connections continue. Users need access rules, too: see
`./task kafka-create-acls`. Run the command as a principal that may alter the cluster.
"""

import argparse
import os
from pathlib import Path

from confluent_kafka.admin import (
    AdminClient,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialAlteration,
    UserScramCredentialUpsertion,
)

from shop_common.environment.files import FileUnusable, value_in
from shop_common.events.broker import REQUEST_SECONDS
from shopctl.events.connection import add_broker, connection
from shopctl.terminal.failures import CommandFailed
from shopctl.terminal.output import add_json, print_json, print_table

_ITERATIONS = 4096
"""The rounds of PBKDF2. This is the fewest that Kafka accepts; only passwords that can be guessed need more."""

_SALT_BYTES = 16


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("users", nargs="+", metavar="USER=FILE", help="a user, and the file with its password")
    add_broker(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Raises CommandFailed and KafkaException. May be repeated."""
    passwords = dict(_user(argument) for argument in options.users)
    admin = AdminClient(connection(options).configuration({"log_level": 0}))
    info = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, _ITERATIONS)
    changes: list[UserScramCredentialAlteration] = [
        UserScramCredentialUpsertion(user, info, password.encode(), os.urandom(_SALT_BYTES))
        for user, password in passwords.items()
    ]
    for changed in admin.alter_user_scram_credentials(changes, request_timeout=REQUEST_SECONDS).values():
        changed.result()
    if options.json:
        print_json([{"user": user, "outcome": "password set"} for user in passwords])
    else:
        print_table("users", ["user", "outcome"], [(user, "password set") for user in passwords])
    return 0


def _user(argument: str) -> tuple[str, str]:
    user, separator, path = argument.partition("=")
    if not (user and separator and path):
        raise CommandFailed(f"{argument!r} must be USER=FILE")
    try:
        return user, value_in(Path(path))
    except FileUnusable as error:
        raise CommandFailed(str(error)) from error
