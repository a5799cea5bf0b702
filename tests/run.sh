#!/usr/bin/env bash
# All tests: sees to what they need (Debian packages when it may install them, otherwise it says
# what is missing), runs the Rust tests, then the real SDKs, Codex and Claude Code against a running Tollgate.
#
#   SKIP_CLIENTS=1   leaves the SDKs, Codex and Claude Code out (they are installed from PyPI and npm)
#
# Arguments are handed to cargo test.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=packages.sh
. "$root/tests/packages.sh"
cd "$root"

need_build_tools
need_proxies

failed=()
say "cargo test"
cargo test --workspace --no-fail-fast "$@" </dev/null || failed+=("cargo test")

if [ "${SKIP_CLIENTS:-}" = 1 ]; then
  say "SDK, Codex and Claude Code tests LEFT OUT (SKIP_CLIENTS=1)"
else
  say "SDKs, Codex and Claude Code"
  tests/clients/run.sh all </dev/null || failed+=("tests/clients/run.sh all")
fi

if [ ${#failed[@]} -gt 0 ]; then
  printf '==> FAILED: %s\n' "${failed[@]}"
  exit 1
fi
say "all tests passed"
