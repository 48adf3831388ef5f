#!/bin/sh
# The image runs this once, for a new data folder: creates two databases, each with a role that owns only this one.
set -eu
for name in inventory orders; do
    psql -U postgres -d postgres -v ON_ERROR_STOP=1 -v name="$name" -v password="$(cat "/secrets/$name-database/password")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT, TEMPORARY ON DATABASE :"name" FROM PUBLIC;
SQL
done
