#!/bin/sh
# Tells Prefect's server what it is to offer, as these files say it; to be run again after any change.
# NOTIFICATION_BLOCK_ID is the id of a notification block made in Prefect's UI; without it nobody is
# notified of anything.
set -eu
prefect --no-prompt work-pool create local --type process --overwrite
prefect --no-prompt deploy --prefect-file infra/compose/deployments.yaml --all

automation() { # FILE: in the place of the one of the same name
    name=$(sed -n 's/^name: //p' "$1")
    prefect --no-prompt automation delete "$name" >/dev/null 2>&1 || true
    sed "s/NOTIFICATION_BLOCK_ID/${NOTIFICATION_BLOCK_ID:-}/" "$1" >/tmp/automation.yaml
    prefect --no-prompt automation create --from-file /tmp/automation.yaml
}

for file in infra/automations/*.yaml; do
    automation "$file"
done
if [ -n "${NOTIFICATION_BLOCK_ID:-}" ]; then
    for file in infra/automations/notify/*.yaml; do
        automation "$file"
    done
fi
