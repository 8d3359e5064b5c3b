#!/bin/sh
# Start Postgres as its official image does: user, database and password come from the environment.
set -eu
data=/var/lib/postgresql/data
if [ ! -e "$data/PG_VERSION" ]; then
    password=$(mktemp)
    printf '%s' "$POSTGRES_PASSWORD" > "$password"
    # In UTF-8, as that image's LANG has it: without, a database takes ASCII only, and MLflow answers arrows with 500.
    initdb --pgdata="$data" --encoding=UTF8 --locale=C.UTF-8 --username="$POSTGRES_USER" --pwfile="$password" --auth=scram-sha-256 >/dev/null
    rm "$password"
    echo 'host all all all scram-sha-256' >> "$data/pg_hba.conf"
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single -D "$data" postgres >/dev/null
fi
exec postgres -D "$data" -c listen_addresses='*'
