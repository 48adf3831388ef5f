#!/bin/bash
# Creates a database for each API and the role that owns it, with the password from the secrets volume. Safe to repeat.
# Runs in the server's network namespace, where the PostgreSQL image lets the administrator connect without a password.
set -euo pipefail

for name in inventory orders; do
    # psql reads the password from the file: every user of the machine can see a command line.
    DATABASE=$name psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --host 127.0.0.1 --username postgres --set name="$name" <<'SQL'
\set password `cat "/run/secrets/$DATABASE/password"`
SELECT format('CREATE ROLE %I LOGIN', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
