#!/usr/bin/env bash
# See Tollgate work: builds it and runs `tollgate demo` with the arguments given (--once: one
# request, then exit). Needs nothing but Rust; cmake and a C compiler are installed where they are
# missing and that is allowed, otherwise it says exactly what to install.
#
# Nothing is left behind but the build: the demo's data directory is thrown away at its end.
# CARGO_TARGET_DIR is honoured, as by any cargo.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=../tests/packages.sh
. "$root/tests/packages.sh"

need_build_tools

# A relative one means the caller's folder.
case ${CARGO_TARGET_DIR:-} in
  '' | /*) ;;
  *) export CARGO_TARGET_DIR=$PWD/$CARGO_TARGET_DIR ;;
esac
# From here, so that no other folder's toolchain or cargo configuration is in the way.
cd "$root"

say "building Tollgate (the first time takes several minutes)"
cargo build --release --locked --bin tollgate </dev/null
exec cargo run --release --locked --quiet --bin tollgate -- demo "$@"
