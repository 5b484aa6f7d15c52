#!/bin/sh
# Makes every secret of compose.yaml in ./secrets and keeps what is there. None has a default: without
# them nothing starts. The folder is its owner's only; the files in it are readable, since Compose
# mounts them as they are, one by one, for users of the containers who are nobody here.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets

drawn() { # hex digits, so that nothing needs escaping anywhere
    od -An -tx1 -N "$1" /dev/urandom | tr -d ' \n'
}

keep() { # NAME, content from standard input
    if [ -s "secrets/$1" ]; then
        cat >/dev/null
    else
        cat >"secrets/$1.new"
        mv "secrets/$1.new" "secrets/$1"
    fi
}

read_secret() {
    cat "secrets/$1"
}

for name in postgres_password prefect_db_password mlflow_db_password redis_password \
    mlflow_admin_password mlflow_flow_password mlflow_secret_key grafana_admin_password; do
    drawn 24 | keep "$name"
done
for role in admin flow trainer janitor reader mlflow; do
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' \
        "$(drawn 10)" "$(drawn 24)" | keep "s3_$role"
done
printf 'admin:%s' "$(drawn 24)" | keep prefect_auth

# the same secrets in the forms that their readers take
printf 'requirepass %s\nappendonly yes\n' "$(read_secret redis_password)" | keep redis_conf
printf 'redis://:%s@redis:6379/1' "$(read_secret redis_password)" | keep prefect_docket_url
database="postgresql+psycopg2://mlflow:$(read_secret mlflow_db_password)@postgres:5432/mlflow"
printf '%s' "$database" | keep mlflow_backend_uri
cat <<EOF | keep mlflow_auth
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = $database
admin_username = admin
admin_password = $(read_secret mlflow_admin_password)
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
EOF
printf 'user = "admin:%s"\n' "$(read_secret mlflow_admin_password)" | keep mlflow_admin_curl
printf 'user = "flow:%s"\n' "$(read_secret mlflow_flow_password)" | keep mlflow_flow_curl
printf '{"username": "flow", "password": "%s"}\n' "$(read_secret mlflow_flow_password)" |
    keep mlflow_flow_user
