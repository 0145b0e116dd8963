#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# A plain shell: verdict.sh IMAGE DIRECTORY puts the results into DIRECTORY and ends with the
# verdict's exit code. On a machine without KVM the same command takes three to five times as long.
set -eu
image=$1 results=$2
mkdir -p "$results"
"$(dirname -- "$(readlink -f -- "$0")")/../../oomtest" run --kernel "$image" \
    --json "$results/verdict.json" --html "$results/verdict.html" --junitxml "$results/junit.xml"
