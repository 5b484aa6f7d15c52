#!/bin/sh
# Creates the secrets of compose.yaml in ./secrets; existing ones are kept. Without them no service starts.
# The folder is readable by its owner only; the files are readable by all, since Compose mounts them with
# their permissions for the containers' users, which do not exist on the host.
set -eu
cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets

random() { # BYTES; hex digits, which need no escaping
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
    random 24 | keep "$name"
done
for role in admin flow trainer janitor reader mlflow; do
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' \
        "$(random 10)" "$(random 24)" | keep "s3_$role"
done
printf 'admin:%s' "$(random 24)" | keep prefect_auth

# the same secrets in the formats of their readers
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
