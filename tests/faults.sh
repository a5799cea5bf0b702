#!/usr/bin/env bash
# The fault test in its long form, against a release build: the server is killed again and again under
# load, its database is locked, its disks are full; nothing may be lost and nothing charged twice.
# `cargo test --test suite faults::` is the short form of the same; tests/suite/faults.rs says more.
#
#   TOLLGATE_FAULTS_REQUESTS     requests, refusals not counted          (20000)
#   TOLLGATE_FAULTS_KILLS        kill -9 of the server                   (24)
#   TOLLGATE_FAULTS_CLIENTS      clients at the same time                (64)
#   TOLLGATE_FAULTS_PER_SECOND   requests a second; there are more than asked for when troubles last  (200)
#   TOLLGATE_FAULTS_TROUBLE_MS   a lock or a full disk lasts half of this to one and a half times (8000)
#   TOLLGATE_FAULTS_RESERVATION  available | strict | none               (available)
#   TOLLGATE_FAULTS_SEED         what happens is drawn from it           (a new one, which is printed)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=packages.sh
. "$root/tests/packages.sh"
cd "$root"

need_build_tools

export TOLLGATE_FAULTS_REQUESTS=${TOLLGATE_FAULTS_REQUESTS:-20000}
export TOLLGATE_FAULTS_KILLS=${TOLLGATE_FAULTS_KILLS:-24}
export TOLLGATE_FAULTS_CLIENTS=${TOLLGATE_FAULTS_CLIENTS:-64}
export TOLLGATE_FAULTS_PER_SECOND=${TOLLGATE_FAULTS_PER_SECOND:-200}
export TOLLGATE_FAULTS_TROUBLE_MS=${TOLLGATE_FAULTS_TROUBLE_MS:-8000}
export TOLLGATE_FAULTS_SEED=${TOLLGATE_FAULTS_SEED:-$(date +%s)}

exec cargo test --release --test suite -- --exact --nocapture \
  faults::nothing_is_lost_and_nothing_is_charged_twice </dev/null
