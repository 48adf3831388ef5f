#!/bin/sh
# Creates the databases and their roles. Runs before the migrations, and again after them, since the rights on the outbox need
# the table. The volume with the server's socket makes this container the administrator, without a password.
set -eu
cd /run/secrets/admin
for name in inventory orders; do
    OWNER_PASSWORD_FILE=postgres-$name-owner API_PASSWORD_FILE=postgres-$name-api \
        RELAY_PASSWORD_FILE=postgres-$name-relay CONSOLE_PASSWORD_FILE=postgres-$name-console \
        python -m shopctl postgres-create-roles "$name" --owner "$name"
done
