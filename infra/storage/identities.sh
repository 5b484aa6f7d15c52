#!/bin/sh
# Prints SeaweedFS' s3.json: one identity per policy and secret of the same name.
#   identities.sh POLICIES SECRETS
# POLICIES/<role>.json are the policies also used on AWS; SECRETS/s3_<role> are AWS credentials files.
# `admin` has no policy; it creates buckets, and no service uses it.
set -eu
policies=$1 secrets=$2

value_of() { # of a key in a credentials file
    sed -n "s/^$1 *= *//p" "$2"
}

identity() {
    role=$1 permissions=$2
    printf '{"name":"%s","credentials":[{"accessKey":"%s","secretKey":"%s"}],%s}' "$role" \
        "$(value_of aws_access_key_id "$secrets/s3_$role")" \
        "$(value_of aws_secret_access_key "$secrets/s3_$role")" "$permissions"
}

printf '{"identities":['
identity admin '"actions":["Admin","Read","Write","List","Tagging"]'
for policy in "$policies"/*.json; do
    role=$(basename "$policy" .json)
    printf ','
    identity "$role" "\"policyNames\":[\"$role\"]"
done
printf '],"policies":['
separator=
for policy in "$policies"/*.json; do
    printf '%s{"name":"%s","content":"%s"}' "$separator" "$(basename "$policy" .json)" \
        "$(tr -d '\n' <"$policy" | sed 's/\\/\\\\/g; s/"/\\"/g')"
    separator=,
done
printf ']}\n'
