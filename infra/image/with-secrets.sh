#!/bin/sh
# Runs a command with secrets from files in its environment: NAME__FILE=/run/secrets/x becomes NAME,
# with the file's content. This keeps secrets out of compose files, manifests and `docker inspect`.
set -eu

for variable in $(env | sed -n 's/^\([A-Z][A-Z0-9_]*\)__FILE=.*/\1/p'); do
    eval "path=\$${variable}__FILE"
    # shellcheck disable=SC2154 # set by the line above
    if [ ! -r "$path" ]; then
        echo "with-secrets: ${variable}__FILE is $path, which cannot be read" >&2
        exit 78
    fi
    value=$(cat "$path")
    if [ -z "$value" ]; then
        echo "with-secrets: ${variable}__FILE is $path, which is empty" >&2
        exit 78
    fi
    export "$variable=$value"
    unset "${variable}__FILE"
done

exec "$@"
