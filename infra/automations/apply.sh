#!/bin/sh
# Tells Prefect's server of every automation here, each in the place of the one of its name.
# NOTIFICATION_BLOCK_ID is the id of a notification block made in Prefect's UI; without it nobody is
# notified of anything.
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
