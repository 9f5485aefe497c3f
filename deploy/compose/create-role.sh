#!/bin/sh
# Runs once, when PostgreSQL sets itself up: a role and a database for Labelmill. It owns its tables and nothing else.
set -eu
psql --username "${POSTGRES_USER:-postgres}" --dbname postgres --quiet --set ON_ERROR_STOP=1 <<'END'
\set password `cat /run/secrets/labelmill_password`
CREATE ROLE labelmill LOGIN PASSWORD :'password';
CREATE DATABASE labelmill OWNER labelmill;
REVOKE ALL ON DATABASE labelmill FROM PUBLIC;
END
