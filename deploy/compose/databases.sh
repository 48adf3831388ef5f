#!/bin/bash
# A database for each API and the role that owns it, with the password that lies in the volume of secrets. Safe to repeat.
# Speaks to the server from within its own network, where the image of PostgreSQL asks its administrator for no password.
set -euo pipefail

for name in inventory orders; do
    # psql reads the password itself: everyone on the machine can see a command line.
    DATABASE=$name psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --host 127.0.0.1 --username postgres --set name="$name" <<'SQL'
\set password `cat "/run/secrets/$DATABASE/password"`
SELECT format('CREATE ROLE %I LOGIN', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \gexec
ALTER ROLE :"name" PASSWORD :'password';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
