# Sourced by .ci/run, tests/run.sh and tests/clients/run.sh: Debian packages that are missing.

# Debian leaves these out of a user's PATH; ip lives there.
PATH=$PATH:/usr/sbin:/sbin

say() { printf '==> %s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# need_packages PACKAGE...: installs them with apt-get where that is allowed (root, or sudo without
# a password); otherwise says exactly what to install and ends.
need_packages() {
  [ $# -gt 0 ] || return 0
  local run=()
  if [ "$(id -u)" -ne 0 ]; then
    if have sudo && sudo -n true 2>/dev/null; then run=(sudo -n); else run=(false); fi
  fi
  if ! have apt-get || [ "${run[*]}" = false ]; then
    die "missing: $*. Install them first, on Debian: sudo apt-get install -y $*"
  fi
  say "installing Debian packages: $*"
  local options=(-y -q --no-install-recommends)
  "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q </dev/null >/dev/null \
    || say "apt-get update failed; trying with the package lists at hand"
  "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" "$@" </dev/null \
    || die "apt-get could not install: $*"
}

# What the build needs beside Rust (zlib-ng, SQLite and the cryptography are C).
need_build_tools() {
  local missing=()
  have cargo || die "cargo is missing; install Rust from https://rustup.rs"
  have cmake || missing+=(cmake)
  { have cc && have make; } || missing+=(build-essential)
  need_packages "${missing[@]}"
}

# The egress proxies that the tests start.
need_proxies() {
  local missing=()
  have tinyproxy || missing+=(tinyproxy-bin)
  have microsocks || missing+=(microsocks)
  have stunnel4 || missing+=(stunnel4)
  need_packages "${missing[@]}"
}
