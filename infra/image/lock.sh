#!/bin/sh
# Writes requirements/*.txt, wheels with SHA-256, from the *.in files, pyproject.toml and constraints.txt,
# which has the versions. Needs uv, which gets the arguments, such as --upgrade.
# TORCH=--find-links=FOLDER takes PyTorch's CPU wheel from a folder.
set -eu
cd "$(dirname "$0")/../.."
into=infra/image/requirements
index=https://download.pytorch.org/whl/cpu

lock() {
    name=$1
    shift
    uv pip compile --quiet --generate-hashes --only-binary :all: --no-annotate --no-header \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --constraint constraints.txt "$into/$name.in" "$@" --output-file "$into/$name.txt"
}

lock services "$@"
lock cuda pyproject.toml --extra heic --extra gpu --extra trackers "$@"
lock cpu pyproject.toml --extra heic --extra trackers --override "$into/cpu.in" \
    --index-strategy unsafe-best-match "${TORCH:---extra-index-url=$index}" "$@"
# index of the one wheel that is not on PyPI
printf -- '--extra-index-url %s\n%s\n' "$index" "$(cat "$into/cpu.txt")" >"$into/cpu.txt"
