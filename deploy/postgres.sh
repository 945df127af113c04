#!/bin/sh
# Run once by PostgreSQL's image, on an empty volume. The application gets a role that owns its database and nothing
# else; the superuser loses the password, so that only the socket inside the container lets him in. The image has read
# the password from POSTGRES_PASSWORD_FILE by now, and unset that.
set -eu
psql -q -v ON_ERROR_STOP=1 -v password="$POSTGRES_PASSWORD" -U "$POSTGRES_USER" <<'SQL'
CREATE ROLE chattable LOGIN PASSWORD :'password';
CREATE DATABASE chattable OWNER chattable;
\connect chattable
CREATE EXTENSION vector;
ALTER ROLE CURRENT_USER PASSWORD NULL;
SQL
