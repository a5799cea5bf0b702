#!/usr/bin/env bash
# Runs the official SDKs, Codex and Claude Code against a running Tollgate, without a network.
#
#   tests/clients/run.sh [openai-python|openai-node|anthropic-python|anthropic-node|codex|claude-code|all]... [--direct]
#
# Installs the clients from PyPI and npm (pinned) into CLIENTS_DIR, then enters a network
# namespace that has nothing but loopback and starts there a fake upstream and Tollgate.
# --direct points the clients at the fake upstream itself, to check the scripts alone.
#
#   GATEWAY_BIN, FAKE_UPSTREAM_BIN   the programs; default: built here with cargo
#   CLIENTS_DIR              cache of the clients; default: clients in the target folder
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source=../packages.sh
. "$here/../packages.sh"

known=(openai-python openai-node anthropic-python anthropic-node codex claude-code)
inside=no direct=no suites=()
for argument in "$@"; do
  case $argument in
    --inside) inside=yes ;;
    --direct) direct=yes ;;
    all) suites+=("${known[@]}") ;;
    *)
      [[ " ${known[*]} " == *" $argument "* ]] || die "unknown client $argument; known: ${known[*]} all"
      suites+=("$argument")
      ;;
  esac
done
[ ${#suites[@]} -gt 0 ] || suites=("${known[@]}")

target=${CARGO_TARGET_DIR:-$root/target}
case $target in /*) ;; *) target=$root/$target ;; esac
clients=${CLIENTS_DIR:-$target/clients}
mkdir -p "$clients"
clients=$(cd "$clients" && pwd)

wanted() { [[ " ${suites[*]} " == *" $1 "* ]]; }

# ---- outside the namespace: programs and clients ------------------------------------------------

# fresh NAME FILE...: whether the cached NAME was installed from these very files.
fresh() {
  local name=$1
  shift
  [ -f "$clients/$name/.installed" ] && [ "$(cat "$@" | cksum)" = "$(cat "$clients/$name/.installed")" ]
}

# install_python NAME: what its requirements.txt says.
install_python() {
  local files=("$here/$1/requirements.txt") folder=$clients/$1
  fresh "$1" "${files[@]}" && return
  have python3 && python3 -c 'import venv, ensurepip' 2>/dev/null \
    || need_packages python3 python3-venv
  say "installing $1 from PyPI"
  rm -rf "$folder"
  python3 -m venv "$folder"
  "$folder/bin/pip" install -q --disable-pip-version-check --only-binary :all: -r "${files[0]}" \
    || die "pip could not install $1"
  cat "${files[@]}" | cksum >"$folder/.installed"
}

# install_npm NAME: what its package-lock.json says.
install_npm() {
  local folder=$clients/$1 files=("$here/$1/package.json" "$here/$1/package-lock.json")
  fresh "$1" "${files[@]}" && return
  { have npm && have node; } || need_packages nodejs npm
  say "installing $1 from npm"
  rm -rf "$folder"
  mkdir -p "$folder"
  cp "${files[@]}" "$here/$1/.npmrc" "$folder/"
  # The SDK asks for a newer node than Debian may have; it comes from npm as well (below).
  (cd "$folder" && npm ci --loglevel=error) || die "npm could not install $1"
  cat "${files[@]}" | cksum >"$folder/.installed"
}

if [ "$inside" = no ]; then
  have ip || need_packages iproute2
  have curl || need_packages curl
  if wanted openai-python; then install_python openai_python; fi
  if wanted anthropic-python; then install_python anthropic_python; fi
  if wanted openai-node; then install_npm openai_node; fi
  if wanted anthropic-node; then install_npm anthropic_node; fi
  if wanted codex; then install_npm codex; fi
  if wanted claude-code; then install_npm claude_code; fi

  builds=()
  [ -n "${FAKE_UPSTREAM_BIN:-}" ] || builds+=(-p tollgate-test-support)
  [ "$direct" = yes ] || [ -n "${GATEWAY_BIN:-}" ] || builds+=(-p tollgate)
  if [ ${#builds[@]} -gt 0 ]; then
    (cd "$root" && cargo build "${builds[@]}" --bins)
  fi
  export GATEWAY_BIN=${GATEWAY_BIN:-$target/debug/tollgate}
  export FAKE_UPSTREAM_BIN=${FAKE_UPSTREAM_BIN:-$target/debug/fake-upstream}
  export CLIENTS_DIR=$clients

  again=(bash "$here/run.sh" --inside "${suites[@]}")
  if [ "$direct" = yes ]; then again+=(--direct); fi
  if unshare -rn true 2>/dev/null; then
    exec unshare -rn "${again[@]}"
  elif unshare -n true 2>/dev/null; then
    exec unshare -n "${again[@]}"
  fi
  die "this machine allows no network namespaces ('unshare -rn true' fails), and the clients run
       only in one that has nothing but loopback. In a container, allow user namespaces (seccomp);
       on a host, see the sysctls kernel.unprivileged_userns_clone and user.max_user_namespaces."
fi

# ---- inside: nothing but loopback, so every port is free ------------------------------------------

ip link set lo up
work=$(mktemp -d)
started=()
stop() {
  local pid
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$work"
}
trap stop EXIT

passed=0 failed=0
ok() { passed=$((passed + 1)); printf 'ok      %s\n' "$1"; }
bad() { failed=$((failed + 1)); printf 'FAILED  %s\n' "$1"; }

# wait_until LOG COMMAND...: until the command succeeds.
wait_until() {
  local log=$1 _
  shift
  for _ in $(seq 150); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  cat "$log" >&2
  die "still failing after 30 s: $*; the log is above"
}

# No proxy, provider key or setting of the caller's may get in.
for name in $(compgen -e); do
  case $name in
    GATEWAY_BIN | CLIENTS_DIR) ;;
    TOLLGATE_* | OPENAI_* | ANTHROPIC_* | GEMINI_* | CODEX_* | *_proxy | *_PROXY) unset "$name" ;;
  esac
done

upstream=http://127.0.0.1:18070
if [ "$direct" = yes ]; then limit=(--max-body 4194304 --key direct); else limit=(); fi
"$FAKE_UPSTREAM_BIN" --port 18070 "${limit[@]}" >"$work/upstream.log" 2>&1 &
started+=($!)
wait_until "$work/upstream.log" grep -q "$upstream" "$work/upstream.log"

# Every suite has its own users and accounts: an account that answered 429 cools down, and must
# not be what the next suite meets.
speaks() { # suite: its platform, the model it asks for, what that is called upstream, what each answer costs
  case $1 in
    # 100 x 2 + 40 x 2.5 + 7 x 4 + 20 x 0.1 + 30 x 10 USD a million.
    anthropic-* | claude-code)
      platform=anthropic model=claude-sonnet-5-5 real=claude-sonnet-5-5-20261001 charge=0.00063 ;;
    # 100 x 0.25 + 20 x 0.025 + 30 x 2.
    *) platform=openai model=gpt-5-mini real=gpt-5-mini-2025-08-07 charge=0.0000855 ;;
  esac
}
resources() {
  local suite group platform model real charge
  echo "groups:"
  for suite in "${suites[@]}"; do
    speaks "$suite"
    for group in main text limited overloaded unknown failing; do
      printf '  - { name: %s-%s, platform: %s }\n' "$suite" "$group" "$platform"
    done
  done
  echo "accounts:"
  account() { # suite, group, models
    cat <<YAML
  - name: $1-$2
    platform: $platform
    type: api_key
    credentials: { api_key: "sk-upstream-$1-$2", base_url: "$upstream" }
    groups: [$1-$2]
    concurrency: 0
    model_mapping: $3
YAML
  }
  for suite in "${suites[@]}"; do
    speaks "$suite"
    account "$suite" main "{ $model: $real }"
    account "$suite" text "{ $model: fake-text }"
    account "$suite" limited "{ $model: fake-429 }"
    account "$suite" overloaded "{ $model: fake-529 }"
    account "$suite" unknown "{ $model: fake-404 }"
    # Breaks off after some of its text. It is a pool itself, which is asked again whatever it answers.
    account "$suite" failing "{ $model: fake-error-5 }"
    echo "    extra: { pool_mode: true }"
  done
  echo "users:"
  for suite in "${suites[@]}"; do
    printf '  - { name: %s, balance: "10.00", concurrency: 0 }\n' "$suite"
    printf '  - { name: %s-poor, balance: "0", concurrency: 0 }\n' "$suite"
  done
  echo "api_keys:"
  key() { # suite, key, user, group
    printf '  - { name: %s-%s, key: tg-%s-%s-0123456789abcdef, user: %s, group: %s }\n' \
      "$1" "$2" "$1" "$2" "$3" "$4"
  }
  for suite in "${suites[@]}"; do
    key "$suite" main "$suite" "$suite-main"
    key "$suite" text "$suite" "$suite-text"
    key "$suite" poor "$suite-poor" "$suite-main"
    key "$suite" limited "$suite" "$suite-limited"
    key "$suite" overloaded "$suite" "$suite-overloaded"
    key "$suite" unknown "$suite" "$suite-unknown"
    key "$suite" failing "$suite" "$suite-failing"
  done
}

if [ "$direct" = yes ]; then
  export GATEWAY_URL=$upstream
  keys() {
    export GATEWAY_KEY=direct GATEWAY_KEY_TEXT=direct GATEWAY_KEY_POOR=sk-fake-403
    export GATEWAY_KEY_LIMITED=sk-fake-429 GATEWAY_KEY_OVERLOADED=sk-fake-503
    export GATEWAY_KEY_UNKNOWN=sk-fake-404 GATEWAY_KEY_FAILING=direct GATEWAY_MODEL_FAILING=fake-error-5
  }
else
  export GATEWAY_URL=http://127.0.0.1:18080
  export TOLLGATE_SERVER__LISTEN='["127.0.0.1:18080"]' TOLLGATE_ADMIN__LISTEN=127.0.0.1:18090
  export TOLLGATE_DATA_DIR=$work/data TOLLGATE_SERVER__MAX_BODY_BYTES=4194304
  resources >"$work/resources.yaml"
  "$GATEWAY_BIN" apply -f "$work/resources.yaml" >"$work/apply.log" 2>&1 || {
    cat "$work/apply.log" >&2
    die "tollgate apply failed"
  }
  "$GATEWAY_BIN" serve >"$work/serve.log" 2>&1 &
  started+=($!)
  wait_until "$work/serve.log" curl -sf http://127.0.0.1:18090/readyz
  keys() {
    local name
    for name in POOR LIMITED OVERLOADED UNKNOWN FAILING TEXT; do
      export "GATEWAY_KEY_$name=tg-$1-${name,,}-0123456789abcdef"
    done
    export GATEWAY_KEY=tg-$1-main-0123456789abcdef
  }
fi

# records SUITE COUNT [BROKEN]: so many usage records of its user, answered, exactly metered and charged,
# and so many of answers that the provider broke off, paid for as far as they came. COUNT may be "some".
records() {
  [ "$direct" = no ] || return 0
  local line good=0 all=0 broken=0 platform model real charge _
  speaks "$1"
  # A record is there within a second of its request's end; the machine may be busy.
  for _ in $(seq 40); do
    "$GATEWAY_BIN" usage records --user "$1" --json >"$work/records" 2>"$work/records.err" \
      || { cat "$work/records.err" >&2; break; }
    good=0 all=0 broken=0
    while IFS= read -r line; do
      line=${line//\": /\":}
      if [[ $line != *'"status":200,'* ]]; then continue; fi
      if [[ $line == *"\"account\":\"$1-failing\""* ]]; then
        if [[ $line == *'"outcome":"upstream_error"'* && $line == *'"usage_source":"estimated"'* &&
          $line == *'"input_tokens":100,'* && $line =~ \"charge\":\"0\.0*[1-9] ]]; then
          broken=$((broken + 1))
        fi
        continue
      fi
      all=$((all + 1))
      if [[ $line == *'"outcome":"ok"'* && $line == *'"input_tokens":100,'* &&
        $line == *'"output_tokens":30,'* && $line == *'"cache_read_tokens":20,'* &&
        $line == *'"usage_source":"reported"'* && $line == *"\"charge\":\"$charge\""* ]]; then
        good=$((good + 1))
      fi
    done <"$work/records"
    if [ "$2" = some ] && [ "$good" -gt 0 ]; then break; fi
    if [ "$good" = "$2" ] && [ "$broken" = "${3:-0}" ]; then break; fi
    sleep 0.25
  done
  if [ "$good" = "$all" ] && [ "$broken" = "${3:-0}" ] &&
    { [ "$good" = "$2" ] || { [ "$2" = some ] && [ "$good" -gt 0 ]; }; }; then
    ok "$1: usage records ($good, $broken broken off)"
  else
    bad "$1: usage records: $2 expected, $all of answered requests, $good of them exact; \
${3:-0} of broken ones expected, $broken there"
    head -5 "$work/records" >&2
  fi
}

# sdk SUITE COMMAND...: counts the lines a script prints, then looks at its records.
sdk() {
  local suite=$1 line served='' broken=0
  shift
  say "$suite"
  keys "$suite"
  while IFS= read -r line; do
    case $line in
      "ok "*) ok "$suite: ${line#ok }" ;;
      "FAILED "*) bad "$suite: ${line#FAILED }" ;;
      "broken "*) broken=${line#broken } ;;
      "served "*) served=${line#served } ;;
      *) printf '%s\n' "$line" ;;
    esac
  done < <("$@" 2>&1)
  if [ -n "$served" ]; then records "$suite" "$served" "$broken"; else bad "$suite: did not run to its end"; fi
}

# codex_run NAME KEY ARGUMENT...: one non-interactive turn that must end with the fake upstream's
# text; unless NAME is text, after Codex has run the command the fake upstream asked for.
codex_run() {
  local name=$1 key=$2 home=$work/codex-$1 status=0 text="Hello from the fake upstream"
  shift 2
  mkdir -p "$home/work"
  sed "s|@URL@|$GATEWAY_URL|" "$here/codex/config.toml" >"$home/config.toml"
  (
    cd "$home/work"
    env -i PATH="$PATH" HOME="$home" CODEX_HOME="$home" GATEWAY_KEY="$key" \
      timeout 120 "$clients/codex/node_modules/.bin/codex" exec --skip-git-repo-check \
      --color never -o "$home/last" "$@" "Say hello." </dev/null >"$home/out" 2>"$home/err"
  ) || status=$?
  if [ "$status" -eq 0 ] && grep -q "$text" "$home/out" && grep -q "$text" "$home/last" &&
    { [ "$name" = text ] || grep -qx example "$home/err"; }; then
    ok "codex: $name"
  else
    bad "codex: $name (exit $status)"
    tail -n 40 "$home/out" "$home/err" >&2
  fi
}

# claude_run NAME KEY INPUT ARGUMENT...: one non-interactive turn with this file as its input, which must end
# well and say TEXT (an extended regular expression).
claude_run() {
  local name=$1 key=$2 input=$3 home=$work/claude-$1 status=0
  shift 3
  mkdir -p "$home/work"
  (
    cd "$home/work"
    env -i PATH="$PATH" HOME="$home" ANTHROPIC_BASE_URL="$GATEWAY_URL" ANTHROPIC_API_KEY="$key" \
      DISABLE_AUTOUPDATER=1 CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 CLAUDE_CODE_MAX_RETRIES=0 \
      timeout 120 "$claude" -p "Say hello." \
      --model claude-sonnet-5-5 "$@" <"$input" >"$home/out" 2>"$home/err"
  ) || status=$?
  if [ "$status" -eq "${STATUS:-0}" ] && grep -qE "$TEXT" "$home/out"; then
    ok "claude-code: $name"
  else
    bad "claude-code: $name (exit $status)"
    tail -n 40 "$home/out" "$home/err" | cut -c1-2000 >&2
  fi
}

if wanted openai-python; then
  sdk openai-python "$clients/openai_python/bin/python" "$here/openai_python/test_sdk.py"
fi
if wanted anthropic-python; then
  sdk anthropic-python "$clients/anthropic_python/bin/python" "$here/anthropic_python/test_sdk.py"
fi
# node_sdk SUITE FOLDER: the script of a Node SDK, by the node that came with it.
node_sdk() {
  local node=node candidate
  for candidate in "$clients/$2"/node_modules/node-linux-*/bin/node; do
    if "$candidate" --version >/dev/null 2>&1; then node=$candidate; fi
  done
  # Imports are looked up beside the script: run the copy next to node_modules.
  cp "$here/$2/test_sdk.mjs" "$clients/$2/"
  sdk "$1" "$node" "$clients/$2/test_sdk.mjs"
}
if wanted openai-node; then node_sdk openai-node openai_node; fi
if wanted anthropic-node; then node_sdk anthropic-node anthropic_node; fi
if wanted codex; then
  say codex
  keys codex
  # The text account never calls a tool. With the main one there are two requests: the fake
  # upstream asks for a command, then gets its output.
  if [ "$direct" = no ]; then codex_run text "$GATEWAY_KEY_TEXT"; fi
  codex_run tools "$GATEWAY_KEY"
  # Tries a WebSocket first, and must fall back when GET /v1/responses answers 426.
  codex_run websocket_fallback "$GATEWAY_KEY" \
    -c model_providers.tollgate.supports_websockets=true
  records codex some
fi

if wanted claude-code; then
  # Scripts of packages are not run, so nothing has linked the program of this machine's kind.
  claude=
  for candidate in "$clients"/claude_code/node_modules/@anthropic-ai/claude-code-*/claude; do
    if "$candidate" --version >/dev/null 2>&1; then claude=$candidate; fi
  done
  say claude-code
  keys claude-code
  TEXT="Hello from the fake upstream"
  # The text account never calls a tool. With the main one the fake upstream asks for a command, then
  # gets its output.
  if [ "$direct" = no ]; then
    claude_run text "$GATEWAY_KEY_TEXT" /dev/null
    # Line by line: pieces of the answer as they came, and at last the whole of it.
    TEXT='"type":"stream_event".*"type":"text_delta"' claude_run events "$GATEWAY_KEY_TEXT" /dev/null \
      --output-format stream-json --include-partial-messages --verbose
    TEXT='"is_error":false.*Hello from the fake upstream' claude_run json "$GATEWAY_KEY_TEXT" /dev/null --output-format json
    # More than 2 MiB; the fake upstream says how many bytes it received.
    head -c 2500000 /dev/zero | tr '\0' x | fold -w 99 >"$work/long"
    TEXT='has (2[5-9]|[3-9].)[0-9]{5} bytes' claude_run long_input "$GATEWAY_KEY_TEXT" "$work/long"
    STATUS=1 TEXT='Invalid API key' claude_run refused tg-nobody-0000000000000000 /dev/null
  fi
  claude_run tools "$GATEWAY_KEY" /dev/null --allowedTools Bash
  records claude-code some
fi

if [ "$failed" -gt 0 ] && [ -f "$work/serve.log" ]; then
  printf '%s\n' "--- the end of Tollgate's log" >&2
  tail -40 "$work/serve.log" >&2
fi
printf '%s passed, %s failed\n' "$passed" "$failed"
[ "$failed" -eq 0 ]
