#!/bin/sh
# Creates work pool, limit, deployments and automations on Prefect's server; run it again after any change.
set -eu
# an existing pool is left as it is: it may have been paused by hand
prefect --no-prompt work-pool create "$POOL" --type process || prefect work-pool inspect "$POOL"
# number of concurrent GPU stages; with more GPUs: `prefect gcl update gpu --limit 2`
prefect --no-prompt gcl create gpu --limit 1 || prefect gcl inspect gpu
prefect --no-prompt deploy --prefect-file infra/deployments.yaml --all
sh infra/automations/apply.sh
