#!/usr/bin/env bash
# From a fresh machine to READY on screen: installs, makes a sealed engine run, starts the daemon on the embedded
# default (file system, SQLite, spool directory), drops a request, shows READY and the ledger, and verifies it.
#
#   scripts/run_local.sh            state goes to .local/ and runs/ below the working tree
#   SR_LOCAL_ROOT=DIR SR_ENGINE_ROOT=DIR scripts/run_local.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
install ""

export SR_LOCAL_ROOT=${SR_LOCAL_ROOT:-.local} SR_ENGINE_ROOT=${SR_ENGINE_ROOT:-runs}
wiring=config/platform/sr/wiring_local.yaml policy=config/platform/sr/policy_v0.yaml
key="local-demo-$(date -u +%Y%m%dT%H%M%S)-$$"
mkdir -p "$SR_LOCAL_ROOT" "$SR_ENGINE_ROOT"

step "1. a sealed engine run, and a request for it"
python scripts/make_engine_run.py --runs "$SR_ENGINE_ROOT" --run-key "$key" --request "$SR_LOCAL_ROOT/request.json"

step "2. the daemon (log: $SR_LOCAL_ROOT/daemon.log)"
scenario-runner serve --wiring "$wiring" --policy "$policy" 2> "$SR_LOCAL_ROOT/daemon.log" &
daemon=$!
trap 'kill -TERM "$daemon" 2>/dev/null || true; wait "$daemon" 2>/dev/null || true' EXIT

step "3. the request, dropped on the control bus"
submitted=$(scenario-runner submit --wiring "$wiring" --json "$SR_LOCAL_ROOT/request.json")
printf '%s\n' "$submitted"
run_id=$(printf '%s' "$submitted" | python -c 'import json, sys; print(json.load(sys.stdin)["run_id"])')

step "4. waiting for run $run_id"
code=3
for _ in $(seq 150); do
  code=0
  scenario-runner status "$run_id" --wiring "$wiring" > "$SR_LOCAL_ROOT/status.txt" 2>&1 || code=$?
  case $code in 0 | 1 | 4) break ;; esac
  kill -0 "$daemon" 2>/dev/null || { tail -n 5 "$SR_LOCAL_ROOT/daemon.log" >&2; die "the daemon stopped"; }
  sleep 0.2
done
cat "$SR_LOCAL_ROOT/status.txt"
[ "$code" -eq 0 ] || { scenario-runner explain "$run_id" --wiring "$wiring" || true; die "the run is not READY"; }

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
