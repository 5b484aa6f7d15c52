#!/bin/sh
# Prints SeaweedFS' s3.json: one identity per secret, bound to the policy of the same name.
#   identities.sh POLICIES SECRETS
# POLICIES/<role>.json are the policies that AWS gets too; SECRETS/s3_<role> are AWS credentials
# files. `admin`, who makes buckets and whom no service uses, has no policy.
set -eu
policies=$1 secrets=$2

value_of() { # of a key in a credentials file
    sed -n "s/^$1 *= *//p" "$2"
}

identity() {
    role=$1 may=$2
    printf '{"name":"%s","credentials":[{"accessKey":"%s","secretKey":"%s"}],%s}' "$role" \
        "$(value_of aws_access_key_id "$secrets/s3_$role")" \
        "$(value_of aws_secret_access_key "$secrets/s3_$role")" "$may"
}

printf '{"identities":['
identity admin '"actions":["Admin","Read","Write","List","Tagging"]'
for policy in "$policies"/*.json; do
    role=$(basename "$policy" .json)
    printf ','
    identity "$role" "\"policyNames\":[\"$role\"]"
done
printf '],"policies":['
between=
for policy in "$policies"/*.json; do
    printf '%s{"name":"%s","content":"%s"}' "$between" "$(basename "$policy" .json)" \
        "$(tr -d '\n' <"$policy" | sed 's/\\/\\\\/g; s/"/\\"/g')"
    between=,
done
printf ']}\n'
