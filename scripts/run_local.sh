#!/usr/bin/env bash
# From a fresh machine to READY on screen: installs, makes a sealed engine run, starts the daemon on the embedded
# default (file system, SQLite, spool directory), drops a request, shows READY and the ledger, and verifies it. Then, on
# Linux, a request without an engine run: the daemon invokes the sample engine, and its run is READY too.
#
#   scripts/run_local.sh            state goes to .local/ and runs/ below the working tree
#   SR_LOCAL_ROOT=DIR SR_ENGINE_ROOT=DIR scripts/run_local.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
install ""

export SR_LOCAL_ROOT=${SR_LOCAL_ROOT:-.local} SR_ENGINE_ROOT=${SR_ENGINE_ROOT:-runs}
wiring=config/platform/sr/wiring_local.yaml policy=config/platform/sr/policy_v0.yaml
# An engine that is a process of this host needs Linux; all else runs elsewhere too.
[ "$(uname -s)" != Linux ] || wiring=config/platform/sr/wiring_local_engine.yaml
key="local-demo-$(date -u +%Y%m%dT%H%M%S)-$$"
mkdir -p "$SR_LOCAL_ROOT" "$SR_ENGINE_ROOT"

# submit ARGS...: put a request on the control bus, show where it lies, and keep its run id in $run_id.
submit() {
  local submitted
  submitted=$(scenario-runner submit --wiring "$wiring" --json "$@")
  printf '%s\n' "$submitted"
  run_id=$(printf '%s' "$submitted" | python -c 'import json, sys; print(json.load(sys.stdin)["run_id"])')
}

# wait_ready: wait until the run $run_id has its verdict, and show it; fails, saying why, when that is not READY.
wait_ready() {
  local status=$SR_LOCAL_ROOT/status.txt waiting
  scenario-runner status "$run_id" --wiring "$wiring" --wait --timeout 60 > "$status" 2>&1 &
  waiting=$!
  while kill -0 "$waiting" 2>/dev/null; do
    kill -0 "$daemon" 2>/dev/null || { kill "$waiting"; tail -n 5 "$SR_LOCAL_ROOT/daemon.log" >&2; die "the daemon stopped"; }
    sleep 0.2
  done
  wait "$waiting" || { cat "$status"; scenario-runner explain "$run_id" --wiring "$wiring" || true; die "the run is not READY"; }
  cat "$status"
}

step "1. a sealed engine run, and a request for it"
python scripts/make_engine_run.py --runs "$SR_ENGINE_ROOT" --run-key "$key" --request "$SR_LOCAL_ROOT/request.json"

step "2. the daemon (log: $SR_LOCAL_ROOT/daemon.log)"
scenario-runner serve --wiring "$wiring" --policy "$policy" 2> "$SR_LOCAL_ROOT/daemon.log" &
daemon=$!
trap 'kill -TERM "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true' EXIT

step "3. the request, dropped on the control bus"
submit "$SR_LOCAL_ROOT/request.json"

step "4. waiting for run $run_id"
wait_ready

step "5. READY, as it lies on the control bus"
find_signal() {
  signal=$(grep -lF "$run_id" "$SR_LOCAL_ROOT"/control-bus/fp.bus.control.v1/*.json 2>/dev/null | head -n 1)
  [ -n "$signal" ]
}
wait_until 5 find_signal || die "READY is not on the bus; see $SR_LOCAL_ROOT/daemon.log"
python -m json.tool "$signal"

step "6. the ledger"
(cd "$SR_LOCAL_ROOT/object-store" && find fraud-platform -type f ! -path '*/.private/*' | grep -e "$run_id" -e instance_receipts | sort)

step "7. verified again, as a careful downstream reader would"
scenario-runner verify "$run_id" --wiring "$wiring"

[ "$wiring" = config/platform/sr/wiring_local_engine.yaml ] || { printf '\nnot shown: the engine, which needs Linux\n'; exit 0; }

step "8. a second request, for which there is no engine run: the daemon is to invoke the engine"
hash=$(python -c 'import hashlib, sys; print(hashlib.sha256(sys.argv[1].encode()).hexdigest())' "$key")
submit --strategy FORCE_INVOKE --run-equivalence-key "$key-invoked" --manifest-fingerprint "$hash" \
  --parameter-hash "$hash" --seed 7 --scenario-id baseline_v1 \
  --window-start 2026-01-01T00:00:00Z --window-end 2026-01-02T00:00:00Z

step "9. waiting for run $run_id"
wait_ready

step "10. what the engine did (attempt), and what was verified of its run"
scenario-runner explain "$run_id" --wiring "$wiring"
