#!/bin/sh
# Creates the database and its roles, or updates them. It is safe to run again. PostgreSQL runs it when it sets itself
# up; deploy/compose/upgrade and restore run it, too.
#
#   labelmill_owner   owns the tables; only `migrate` has its password
#   labelmill         reads and writes rows; all other processes use it
#   labelmill_reader  reads rows; for `metrics` and people who query
set -eu

for role in labelmill_owner labelmill labelmill_reader; do
  if [ ! -s "/run/secrets/${role}_password" ]; then
    echo "create-roles: /run/secrets/${role}_password is empty or missing" >&2
    exit 1
  fi
done

run() { psql --username "${POSTGRES_USER:-postgres}" --no-psqlrc --quiet --set ON_ERROR_STOP=1 "$@"; }

run --dbname postgres <<'END'
\set owner_password `cat /run/secrets/labelmill_owner_password`
\set password `cat /run/secrets/labelmill_password`
\set reader_password `cat /run/secrets/labelmill_reader_password`
SELECT format('CREATE ROLE %I LOGIN', name)
FROM unnest(ARRAY['labelmill_owner', 'labelmill', 'labelmill_reader']) AS name
WHERE name NOT IN (SELECT rolname FROM pg_roles)
\gexec
ALTER ROLE labelmill_owner PASSWORD :'owner_password';
ALTER ROLE labelmill PASSWORD :'password';
-- People who query must not take the connections of workers.
ALTER ROLE labelmill_reader PASSWORD :'reader_password' CONNECTION LIMIT 50;
SELECT 'CREATE DATABASE labelmill OWNER labelmill_owner'
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = 'labelmill')
\gexec
END

run --dbname labelmill --single-transaction <<'END'
-- A statement that waits longer for its lock would hold up the workers' queries behind it.
SET LOCAL lock_timeout = '5s';
REVOKE ALL ON DATABASE labelmill FROM PUBLIC;
GRANT CONNECT ON DATABASE labelmill TO labelmill, labelmill_reader;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO labelmill;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO labelmill;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO labelmill_reader;
-- These tables hold secrets. At the first start they do not exist yet, so `labelmill db upgrade` revokes the right, too.
SELECT 'REVOKE SELECT ON webhook_endpoints, batch_urls FROM labelmill_reader' WHERE to_regclass('batch_urls') IS NOT NULL
\gexec
-- The same rights on what later versions add.
ALTER DEFAULT PRIVILEGES FOR ROLE labelmill_owner IN SCHEMA public
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLES TO labelmill;
ALTER DEFAULT PRIVILEGES FOR ROLE labelmill_owner IN SCHEMA public GRANT USAGE ON SEQUENCES TO labelmill;
ALTER DEFAULT PRIVILEGES FOR ROLE labelmill_owner IN SCHEMA public GRANT SELECT ON TABLES TO labelmill_reader;
END
