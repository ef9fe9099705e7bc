#!/usr/bin/env bash
# Formatting, clippy and the dependency rules, for the host and for the guests' workspaces.
set -euo pipefail
cd "$(dirname "$0")/.."
CACHE="${STEPWELL_CACHE:-$HOME/.cache/stepwell}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$CACHE/target}"

for workspace in . plugin-sdk/rust plugins tests/guests; do
  echo "==> rustfmt $workspace" >&2
  (cd "$workspace" && cargo fmt --all --check)
done

echo "==> clippy, host" >&2
cargo clippy --release --workspace --all-targets -- -D warnings
for workspace in plugin-sdk/rust plugins; do
  echo "==> clippy $workspace" >&2
  (cd "$workspace" && CARGO_TARGET_DIR="$CACHE/guest-target" cargo clippy --workspace --all-targets -- -D warnings)
done

deploy/setup.sh deny
checks="bans licenses sources"
# The advisory database is fetched from the network; a machine that cannot reach it checks everything else.
if PATH="$CACHE/bin:$PATH" cargo deny fetch db >/dev/null 2>&1; then
  checks="advisories $checks"
else
  echo "==> the advisory database cannot be fetched here: advisories are not checked" >&2
fi
echo "==> cargo deny: $checks" >&2
# shellcheck disable=SC2086
PATH="$CACHE/bin:$PATH" cargo deny --log-level error check $checks
