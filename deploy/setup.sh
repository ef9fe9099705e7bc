#!/usr/bin/env bash
# Installs what Stepwell needs beside Rust, Python, Node, a JDK and Maven, into one cache directory:
#   setup.sh [packages] [guest] [tensorflow] [services] [kafka]     (no argument: everything)
# Each part is skipped when it is already there, so a warm call takes no time. What cannot be had is
# named at the end, with the way to mend it, and the exit code is then 1.
set -uo pipefail
cd "$(dirname "$0")/.."

CACHE="${STEPWELL_CACHE:-$HOME/.cache/stepwell}"
TENSORFLOW_VERSION=2.21.0
KAFKA_VERSION=4.1.1
SCALA_VERSION=2.13
LOG4J_VERSION=2.24.3
DENY_VERSION=0.20.2
SCHEMATHESIS_VERSION=4.32.5
CARGO_FUZZ_VERSION=0.13.2
WASMTIME_VERSION=48.0.8
GUEST_TARGET=wasm32-wasip2

mkdir -p "$CACHE"
missing=()

say()  { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
lack() { missing+=("$*"); }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null 2>&1; then sudo -n "$@"
  else return 1
  fi
}

# apt_install PACKAGE… : one update a machine, then the packages.
apt_install() {
  command -v apt-get >/dev/null 2>&1 || return 1
  if [ -z "${apt_updated:-}" ]; then
    as_root apt-get update -qq >&2 || return 1
    apt_updated=1
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >&2
}

setup_packages() {
  local need=()
  command -v cc      >/dev/null 2>&1 || need+=(gcc libc6-dev)
  command -v g++     >/dev/null 2>&1 || need+=(g++)
  command -v make    >/dev/null 2>&1 || need+=(make)
  command -v curl    >/dev/null 2>&1 || need+=(curl)
  command -v unzip   >/dev/null 2>&1 || need+=(unzip)
  if [ ${#need[@]} -gt 0 ]; then
    say "installing system packages: ${need[*]}"
    apt_install "${need[@]}" || lack "system packages ${need[*]}: install them with your package manager"
  fi
  command -v cargo >/dev/null 2>&1 || { lack "cargo: install Rust with rustup (rustup.rs)"; return; }
  # rust-toolchain.toml names the version; rustup fetches it unless it was told not to by itself.
  if ! cargo --version >/dev/null 2>&1; then
    say "installing the Rust toolchain that rust-toolchain.toml names"
    rustup toolchain install >&2 || lack "the Rust toolchain of rust-toolchain.toml: 'rustup toolchain install' failed"
  fi
}

# The guest target: rustup's where it can be fetched, else Debian's rustc with its own standard library sources.
setup_guest() {
  if command -v rustup >/dev/null 2>&1; then
    if rustup target list --installed 2>/dev/null | grep -qx "$GUEST_TARGET"; then return; fi
    if [ ! -e "$CACHE/guest-target-refused" ]; then
      say "fetching the guest target $GUEST_TARGET with rustup"
      if timeout 120 rustup target add "$GUEST_TARGET" >&2; then return; fi
      touch "$CACHE/guest-target-refused"
    fi
  fi
  if [ -x /usr/bin/rustc ] && [ -d /usr/share/wasi-libc ] || [ -e /usr/lib/wasm32-wasi/libc.a ]; then
    if [ -x /usr/bin/cargo ] && [ -d "$(/usr/bin/rustc --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library" ]; then return; fi
  fi
  say "rustup cannot fetch $GUEST_TARGET here: installing Debian's Rust with its library sources"
  apt_install rustc-web cargo-web rust-web-src wasi-libc \
    || lack "guest target $GUEST_TARGET: run 'rustup target add $GUEST_TARGET', or on Debian 'apt-get install rustc-web cargo-web rust-web-src wasi-libc'"
}

setup_tensorflow() {
  local dir="$CACHE/libtensorflow-$TENSORFLOW_VERSION" work wheel
  [ -e "$dir/libtensorflow.so" ] && return
  command -v python3 >/dev/null 2>&1 || { lack "libtensorflow: needs python3 with pip to fetch it"; return; }
  say "downloading libtensorflow $TENSORFLOW_VERSION (270 MB, once)"
  work="$(mktemp -d "$CACHE/tensorflow.XXXXXX")"
  if python3 -m pip download --quiet --no-deps --dest "$work" "tensorflow-cpu==$TENSORFLOW_VERSION" >&2; then
    wheel="$(echo "$work"/*.whl)"
    say "unpacking libtensorflow"
    mkdir -p "$work/lib"
    if python3 - "$wheel" "$work/lib" <<'PY'
import shutil, sys, zipfile
wheel, out = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    for name in ("libtensorflow_cc.so.2", "libtensorflow_framework.so.2"):
        with archive.open(f"tensorflow/{name}") as source, open(f"{out}/{name}", "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
PY
    then
      ln -s libtensorflow_cc.so.2 "$work/lib/libtensorflow.so"
      mkdir -p "$CACHE/wheels" && mv "$wheel" "$CACHE/wheels/"
      rm -rf "$dir" && mv "$work/lib" "$dir"
    else
      lack "libtensorflow: the wheel could not be unpacked"
    fi
  else
    lack "libtensorflow $TENSORFLOW_VERSION: 'pip download tensorflow-cpu==$TENSORFLOW_VERSION' failed; put libtensorflow.so in $dir"
  fi
  rm -rf "$work"
}

setup_services() {
  local need=()
  ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1 || need+=(postgresql)
  command -v redis-server >/dev/null 2>&1 || need+=(redis-server)
  [ ${#need[@]} -eq 0 ] && return
  say "installing ${need[*]}"
  # No service is wanted from the packages: tests and the demo start their own.
  apt_install "${need[@]}" || lack "${need[*]}: install with your package manager"
}

setup_kafka() {
  local dir="$CACHE/kafka-$KAFKA_VERSION" work
  [ -e "$dir/complete" ] && return
  command -v java >/dev/null 2>&1 || apt_install default-jre-headless || { lack "java: needed to run Apache Kafka"; return; }
  command -v mvn  >/dev/null 2>&1 || apt_install maven || { lack "maven: needed to fetch Apache Kafka"; return; }
  say "fetching Apache Kafka $KAFKA_VERSION from Maven Central (43 MB, once)"
  work="$(mktemp -d "$CACHE/kafka.XXXXXX")"
  cat >"$work/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>dev.stepwell</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_$SCALA_VERSION</artifactId><version>$KAFKA_VERSION</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>$LOG4J_VERSION</version></dependency>
  </dependencies>
</project>
POM
  if (cd "$work" && mvn -q -B dependency:copy-dependencies -DoutputDirectory=libs -DincludeScope=runtime >&2); then
    rm -f "$work/pom.xml" && touch "$work/complete"
    rm -rf "$dir" && mv "$work" "$dir"
  else
    rm -rf "$work"
    lack "Apache Kafka $KAFKA_VERSION: Maven could not fetch org.apache.kafka:kafka_$SCALA_VERSION"
  fi
}

# Prebuilt nowhere for every platform, so built once from the registry.
setup_deny() {
  [ -x "$CACHE/bin/cargo-deny" ] && return
  say "building cargo-deny (once)"
  cargo install --quiet --locked --root "$CACHE" --target-dir "$CACHE/tools-target" cargo-deny@$DENY_VERSION >&2 \
    || { lack "cargo-deny: 'cargo install cargo-deny' failed"; return; }
  rm -rf "$CACHE/tools-target"
}

# The same release as the host's own engine: what it is measured against. All default features but those of other subcommands
# and of interfaces that the measured component does not import: what a feature costs at run time stays in.
setup_wasmtime() {
  local features=run,serve,cranelift,parallel-compilation,pooling-allocator,logging,backtrace,demangle,addr2line,profiling
  features+=,coredump,debug,debug-builtins,component-model,component-model-async,threads,gc,gc-copying,gc-drc,gc-null,stack-switching
  [ -x "$CACHE/bin/wasmtime" ] && return
  say "building wasmtime $WASMTIME_VERSION (once)"
  cargo install --quiet --locked --root "$CACHE" --target-dir "$CACHE/tools-target" wasmtime-cli@$WASMTIME_VERSION \
    --no-default-features --features "$features" >&2 \
    || { lack "wasmtime: 'cargo install wasmtime-cli@$WASMTIME_VERSION' failed"; return; }
  rm -rf "$CACHE/tools-target"
}

# The vendor's own clients, which the stand-in of Pinecone's service is tested with.
setup_pinecone() {
  local major venv
  for major in 7 10; do
    venv="$CACHE/pinecone-venv-$major"
    "$venv/bin/python" -c 'import pinecone' 2>/dev/null && continue
    say "installing Pinecone's Python client $major (45 MB, once)"
    python3 -m venv --clear "$venv" >&2 \
      && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "pinecone==$major.*" >&2 \
      || lack "Pinecone's Python client $major: 'pip install pinecone==$major.*' failed; it needs python3 with venv"
  done
}

# The fuzzer of the management API.
setup_schemathesis() {
  local venv="$CACHE/schemathesis-venv-$SCHEMATHESIS_VERSION"
  [ -x "$venv/bin/schemathesis" ] && return
  say "installing schemathesis $SCHEMATHESIS_VERSION (once)"
  python3 -m venv --clear "$venv" >&2 \
    && "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "schemathesis==$SCHEMATHESIS_VERSION" >&2 \
    || { rm -rf "$venv"; lack "schemathesis: 'pip install schemathesis==$SCHEMATHESIS_VERSION' failed; it needs python3 with venv"; }
}

# What runs the fuzz targets of tests/fuzz.
setup_fuzz() {
  [ -x "$CACHE/bin/cargo-fuzz" ] && return
  say "building cargo-fuzz (once)"
  cargo install --quiet --locked --root "$CACHE" --target-dir "$CACHE/tools-target" cargo-fuzz@$CARGO_FUZZ_VERSION >&2 \
    || { lack "cargo-fuzz: 'cargo install cargo-fuzz@$CARGO_FUZZ_VERSION' failed"; return; }
  rm -rf "$CACHE/tools-target"
}

for part in "${@:-packages guest tensorflow services kafka}"; do
  for name in $part; do
    case "$name" in
      packages|guest|tensorflow|services|kafka|deny|wasmtime|pinecone|schemathesis|fuzz) "setup_$name" ;;
      *) echo "setup.sh: unknown part '$name' (packages, guest, tensorflow, services, kafka, pinecone, schemathesis, fuzz, deny, wasmtime)" >&2; exit 2 ;;
    esac
  done
done

if [ ${#missing[@]} -gt 0 ]; then
  printf '\nMissing, and not installable from here:\n' >&2
  printf '  - %s\n' "${missing[@]}" >&2
  exit 1
fi
