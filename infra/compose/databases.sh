#!/bin/sh
# Run by Postgres' image on an empty volume: creates a user and a database each for Prefect and MLflow.
set -eu
for name in prefect mlflow; do
    psql --username postgres --set ON_ERROR_STOP=1 --set name="$name" \
        --set password="$(cat "/run/secrets/${name}_db_password")" <<'EOF'
create role :"name" login password :'password';
create database :"name" owner :"name";
EOF
done
