#!/bin/bash
# Start or stop a Ray cluster on machines reachable by SSH, each with this project installed in the same folder.
#   infra/ssh/ray.sh up HEAD [WORKER...]     the first is the head
#   infra/ssh/ray.sh down HEAD [WORKER...]
# The cluster's token is created here and sent by standard input, never on a command line. Ray listens on
# all addresses: restrict access to these machines by a firewall.
set -euo pipefail

if [ $# -lt 2 ] || { [ "$1" != up ] && [ "$1" != down ]; }; then
    echo "usage: $0 up|down HEAD [WORKER...]" >&2
    exit 2
fi
action=$1 head=$2
shift
: "${FOLDER:=dreambooth-factory}"
: "${RAY_PORT:=6379}"
token_file=${RAY_TOKEN_FILE:-$HOME/.ray/dreambooth_token}

if [ "$action" = down ]; then
    for host in "$@"; do
        # shellcheck disable=SC2029 # FOLDER is expanded on this machine
        ssh "$host" "cd '$FOLDER' && .venv/bin/ray stop"
    done
    exit
fi

if [ ! -s "$token_file" ]; then
    mkdir -p "$(dirname "$token_file")"
    (umask 077 && od -An -tx1 -N 32 /dev/urandom | tr -d ' \n' >"$token_file")
fi
for host in "$@"; do
    options="--address '$head:$RAY_PORT'"
    if [ "$host" = "$head" ]; then
        options="--head --port '$RAY_PORT' --dashboard-host 127.0.0.1"
    fi
    # shellcheck disable=SC2029 # variables are expanded on this machine
    ssh "$host" "read -r RAY_AUTH_TOKEN; export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
        cd '$FOLDER' && .venv/bin/ray start $options" <"$token_file"
done
