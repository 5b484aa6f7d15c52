#!/bin/sh
# Creates every automation of this folder on Prefect's server, replacing those of the same name.
# NOTIFICATION_BLOCK_ID: id of a notification block created in Prefect's UI; without it, notify/ is left out.
set -eu
here=$(dirname "$0")

automation() { # FILE
    name=$(sed -n 's/^name: //p' "$1")
    prefect --no-prompt automation delete "$name" >/dev/null 2>&1 || true
    sed "s/NOTIFICATION_BLOCK_ID/${NOTIFICATION_BLOCK_ID:-}/" "$1" >"$ready"
    prefect --no-prompt automation create --from-file "$ready"
}

ready=$(mktemp "${TMPDIR:-/tmp}/automation.XXXXXX.yaml")
trap 'rm -f "$ready"' EXIT
for file in "$here"/*.yaml; do
    automation "$file"
done
if [ -n "${NOTIFICATION_BLOCK_ID:-}" ]; then
    for file in "$here"/notify/*.yaml; do
        automation "$file"
    done
fi
