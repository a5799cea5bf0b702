#!/usr/bin/env bash
# The whole-path load comparison: builds Tollgate, a bare Pingora proxy and the fake provider in
# release, and measures them in interleaved rounds on 127.0.0.1. Stops by itself.
#
#   benches/load/run.sh                                   1 KiB bodies, 64 connections, 5 rounds of 5 s
#   benches/load/run.sh --connections 16 --body-size 400K
#   benches/load/run.sh --stream 64                       event streams of 64 deltas
#   benches/load/run.sh --matrix                          all kinds of load in turn (about 20 minutes)
#   benches/load/run.sh --matrix --quick                  the same, only to see that it works (one minute)
#   benches/load/run.sh --help                            all options
#
# wrk is installed from Debian when it is missing and apt may be used. TOLLGATE_LOAD_BUILD=0 takes
# the programs that are there.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"

need() { # COMMAND PACKAGE
  command -v "$1" >/dev/null && return
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get install -y --no-install-recommends "$2" >&2 || { apt-get update >&2 && apt-get install -y --no-install-recommends "$2" >&2; }
  else
    echo "benches/load: $1 is missing (Debian package $2)" >&2
    exit 1
  fi
}
need wrk wrk
need python3 python3-minimal

if [ "${TOLLGATE_LOAD_BUILD:-1}" = 1 ]; then
  # One command: two would build shared dependencies twice, with different features.
  cargo build --release --quiet -p tollgate -p tollgate-test-support \
    --bin tollgate --bin fake-upstream --example bare_proxy --example stream_load
fi
exec python3 "$here/load.py" --programs "${CARGO_TARGET_DIR:-$root/target}/release" "$@"
