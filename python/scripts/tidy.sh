#!/usr/bin/env bash
# Runs a command with a temporary folder of its own, and fails when the command leaves something in it.
#
#   tidy.sh cargo test …
set -uo pipefail
TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/fuelrail-tidy-XXXXXX") || exit 1
export TMPDIR
"$@"
code=$?
left=$(ls -A "$TMPDIR")
if [ -n "$left" ]; then
    printf 'left in the temporary folder %s:\n%s\n' "$TMPDIR" "$left" >&2
    [ "$code" != 0 ] || code=1
    # After a failure the files may say why.
    exit "$code"
fi
rmdir "$TMPDIR"
exit "$code"
