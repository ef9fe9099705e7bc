#!/usr/bin/env bash
# Runs the fuzz targets, each for FUZZ_SECONDS:  run.sh [TARGET…]   (no argument: all)
# Corpora grow in the cache directory, beginning with the repository's own examples. What makes a target fail is kept there
# too, and its path is printed.
set -euo pipefail
cd "$(dirname "$0")/../.."

CACHE="${STEPWELL_CACHE:-$HOME/.cache/stepwell}"
SECONDS_EACH="${FUZZ_SECONDS:-30}"
export PATH="$CACHE/bin:$PATH" CARGO_TARGET_DIR="$CACHE/fuzz-target"
corpora="$CACHE/fuzz-corpora"

light="pipeline configuration cloudevent origin"
heavy="upload filter"

# seed TARGET FILE… : examples that a corpus begins with, under the names of their contents.
seed() {
  local target="$1" file
  shift
  mkdir -p "$corpora/$target" "$corpora/$target-failures"
  for file in "$@"; do
    [ -f "$file" ] && cp "$file" "$corpora/$target/seed-$(sha256sum "$file" | cut -c1-16)"
  done
  return 0
}

# lines TARGET TEXT… : the same for short texts.
lines() {
  local target="$1" text
  shift
  mkdir -p "$corpora/$target" "$corpora/$target-failures"
  for text in "$@"; do
    printf '%s' "$text" >"$corpora/$target/seed-$(printf '%s' "$text" | sha256sum | cut -c1-16)"
  done
}

seed pipeline plugins/pipelines/*.yaml host/pipeline/tests/*.yaml host/pipeline/tests/mistakes.txt
lines pipeline '{"stepwell":1,"name":"p","steps":[{"id":"a","plugin":"b@1","grants":{"http":["https://*.example.com"]}}]}'
seed configuration deploy/*.toml
lines cloudevent '{"specversion":"1.0","id":"1","source":"/a","type":"t","data":{"x":[1]}}' '{"specversion":"1.0","id":"1","source":"/a","type":"t","data_base64":"AA=="}'
lines origin 'example.com' 'example.com:8443' '127.0.0.1:80' '[2001:db8::1]:443' 'https://*.example.com' 'http://10.0.0.5:8080'
seed upload "${STEPWELL_GUESTS:-$CACHE/guest-target/stepwell}"/{echo,tagger,fetcher,hello-http}.wasm
lines filter '{"a":{"$in":["x",1]},"$or":[{"b":{"$gt":1}},{"c":{"$exists":false}}]}' '{"$and":[{"a":true},{"b":{"$ne":"x"}}]}'

for target in "${@:-$light $heavy}"; do
  for name in $target; do
    features=()
    case " $heavy " in *" $name "*) features=(--features engine) ;; esac
    # Coverage is all that is asked of the compiler: sanitizers would need a nightly one, and guests' memory is not ours.
    cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none ${features[@]+"${features[@]}"} "$name" "$corpora/$name" -- \
      -max_total_time="$SECONDS_EACH" -timeout=10 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=0 -verbosity=0 \
      -artifact_prefix="$corpora/$name-failures/"
    echo "fuzzed $name for $SECONDS_EACH s"
  done
done
