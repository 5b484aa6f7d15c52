#!/bin/sh
# Tells Prefect's server what it is to offer, as these files say it; to be run again after any change.
set -eu
# what is there stays, so that what a person has paused is not started again
prefect --no-prompt work-pool create "$POOL" --type process || prefect work-pool inspect "$POOL"
# stages take turns on the GPU; a team with more of them raises it: `prefect gcl update gpu --limit 2`
prefect --no-prompt gcl create gpu --limit 1 || prefect gcl inspect gpu
prefect --no-prompt deploy --prefect-file infra/deployments.yaml --all
sh infra/automations/apply.sh
