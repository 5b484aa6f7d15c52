#!/bin/sh
# Creates MLflow's user `flow` if it does not exist; fails if it cannot log in.
set -eu
users=http://mlflow:5000/api/2.0/mlflow/users
curl --silent --output /dev/null --config /run/secrets/mlflow_admin_curl \
    --header 'Content-Type: application/json' --data @/run/secrets/mlflow_flow_user "$users/create"
curl --silent --show-error --fail --output /dev/null --config /run/secrets/mlflow_flow_curl \
    "$users/get?username=flow"
