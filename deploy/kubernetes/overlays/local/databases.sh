#!/bin/sh
# Run once by the image, when its data folder is new: two databases, each with a role that owns it and no other.
set -eu
for name in inventory orders; do
    psql -U postgres -d postgres -v ON_ERROR_STOP=1 -v name="$name" -v password="$(cat "/secrets/$name-database/password")" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT, TEMPORARY ON DATABASE :"name" FROM PUBLIC;
SQL
done
