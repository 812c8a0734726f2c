#!/usr/bin/env bash
# Does what a stranger does: clones the committed main into an empty folder, runs the README's first block of commands there, and
# prints how long each took. Usage: scripts/stranger.sh [--keep]
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=$(mktemp -d "${TMPDIR:-/tmp}/a stranger's folder.XXXXXX")   # a path with spaces and a quote, as strangers have
[ "${1:-}" = "--keep" ] || trap 'rm -rf "$folder"' EXIT

git clone --quiet --no-local "$here" "$folder/triloop"
# Recorded data stands beside the repository where there is any; without it those tests are skipped.
[ ! -d "$here/../shared" ] || ln -s "$(cd "$here/../shared" && pwd)" "$folder/shared"
cd "$folder/triloop"
echo "commit $(git rev-parse --short HEAD) in $folder/triloop"

seconds() { date +%s; }
failed=0
run() {
    local begin code=0
    begin=$(seconds)
    printf '\n$ %s\n' "$1"
    env -u VIRTUAL_ENV -u PYTHONPATH bash -c "$1" </dev/null || code=$?
    printf -- '-- %s: exit %s, %s s\n' "$1" "$code" "$(($(seconds) - begin))"
    [ "$code" -eq 0 ] || failed=1
}

run "make setup"   # apart, so that the times below are those after set-up
while IFS= read -r line; do
    line=$(sed "s/ *#.*//" <<<"$line")
    [ -z "$line" ] || run "$line"
done < <(awk '/^```sh$/ {inside = 1; next} /^```$/ {if (inside) exit} inside' README.md)

echo
[ -z "$(git status --porcelain)" ] || { echo "the commands left files that git sees:"; git status --short; failed=1; }
[ "$failed" -eq 0 ] && echo "a stranger would be content" || echo "a stranger would leave"
exit "$failed"
