#!/usr/bin/env bash
# Installs what the tests need and runs every check that this machine can run; says plainly what it could not.
#
#   scripts/run_tests.sh                 lint, types, and all tiers
#   scripts/run_tests.sh TIER            one tier: lint, tier0, parity, localstack, engine_fixture, infra, or all
#   scripts/run_tests.sh PYTEST_ARGS...  only pytest, with these arguments
#
# tier0            unit and integration; no external service. Unpacks Prometheus for the tests of alerts and dashboard
# parity           S3 + Postgres: those that SR_TEST_S3_BUCKET and SR_TEST_PG_DSN name, or a stack of its own
# localstack       Kinesis: the endpoint that SR_KINESIS_ENDPOINT_URL names, or one of its own; S3 and Postgres as above
# engine_fixture   the engine runs under runs/local_full_run-*; makes one when there is none
# infra            the templates of infra/aws, on an emulator that it starts; needs npm
#
# SR_TEST_JOBS     processes that share the tests of a tier (default: one more than cores, because tests wait for a third of
#                  their time; 0: none but pytest itself)
# SR_TEST_FOLDER   where tests have their folders (default: in memory where there is room for them, else where the system
#                  has its temporary files). Those of tests that fail are left
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

# Thousands of processes of the daemon are started; without bytecode each compiles its modules again, 0.2 s of CPU.
unset PYTHONDONTWRITEBYTECODE

tests=tests/services/scenario_runner
scratch=$(mktemp -d)
remaining=()
trap finish EXIT
# Tests share nothing: each has folders, a schema, a key prefix of its own. Whoever is done takes over from the others,
# because a few tests take as long as a thousand.
parallel=(-n "${SR_TEST_JOBS:-$(($(getconf _NPROCESSORS_ONLN) + 1))}" --dist worksteal)

# folders_in_memory: have the folders of the tests in memory. The daemons under test wait for a hundred thousand files to
# be durable; on a disk, that is half of the time. They make the same calls in memory, where these take no time.
folders_in_memory() {
  local folder
  folder=${SR_TEST_FOLDER:-$(memory_folder 4000)} || return 0
  export PYTEST_DEBUG_TEMPROOT=$folder
}

# not_run WHAT: remember what could not run. In a file, because tiers run in subshells.
not_run() { printf 'not run: %s\n' "$*" >> "$scratch/not-run"; }

# finish: say what did not run, also when a tier failed.
finish() {
  [ "${#remaining[@]}" -eq 0 ] || not_run "${remaining[*]}, because of the failure before"
  [ ! -s "$scratch/not-run" ] || { printf '\n'; cat "$scratch/not-run"; }
  rm -rf "$scratch"
}

# run_tier NAME MARKS PYTEST_ARGS...: pytest over one tier; every test that is skipped counts as not run.
run_tier() {
  local name=$1 marks=$2 code=0 line
  shift 2
  step "$name"
  python -m pytest "$tests" -m "$marks" -q "$@" | tee "$scratch/output" || code=$?
  while read -r line; do not_run "$name: $line"; done < <(sed -n 's/^SKIPPED //p' "$scratch/output")
  [ "$code" -ne 5 ] || { not_run "$name: no test was found"; return 0; }
  return "$code"
}

lint() {
  step "ruff"
  ruff check daemon tests scripts docs
  ruff format --check daemon tests scripts docs
  step "mypy --strict"
  mypy
}

tier0() {
  run_tier "tier 0: unit and integration, no external service" "not parity and not localstack and not engine_fixture" \
    "${parallel[@]}"
}

# S3 and Postgres for this subshell, on ports of their own unless the environment names others; down when it ends.
with_parity_stack() {
  if [ -n "${SR_TEST_S3_BUCKET:-}" ] && [ -n "${SR_TEST_PG_DSN:-}" ]; then return; fi
  export SR_PARITY_S3_PORT=${SR_PARITY_S3_PORT:-19000} SR_PARITY_PG_PORT=${SR_PARITY_PG_PORT:-15433}
  export SR_PARITY_SIGNED_S3_PORT=${SR_PARITY_SIGNED_S3_PORT:-19002} SR_PARITY_FSYNC=${SR_PARITY_FSYNC:-off}
  trap 'scripts/parity_stack.sh down' EXIT
  scripts/parity_stack.sh up
  eval "$(scripts/parity_stack.sh env)"
}

parity() (
  with_parity_stack
  run_tier "tier 1: parity, S3 and Postgres" "parity" "${parallel[@]}"
)

localstack() {
  local name="tier 2: localstack, Kinesis through KCL" code=0
  if ! command -v java >/dev/null 2>&1 && [ -z "${JAVA_HOME:-}" ]; then
    not_run "$name: KCL needs Java 17 or newer, and there is none"
    return 0
  fi
  (
    with_parity_stack
    if [ -z "${SR_KINESIS_ENDPOINT_URL:-}" ]; then
      export SR_LOCALSTACK_PORT=${SR_LOCALSTACK_PORT:-14566} SR_LOCALSTACK_DYNAMODB_PORT=${SR_LOCALSTACK_DYNAMODB_PORT:-14567}
      trap 'scripts/localstack.sh stop; [ -z "${SR_PARITY_S3_PORT:-}" ] || scripts/parity_stack.sh down' EXIT
      scripts/localstack.sh start || exit 90
      export AWS_ACCESS_KEY_ID=${AWS_ACCESS_KEY_ID:-test} AWS_SECRET_ACCESS_KEY=${AWS_SECRET_ACCESS_KEY:-test}
      export SR_KINESIS_REGION=us-east-1 SR_KINESIS_ENDPOINT_URL=http://localhost:$SR_LOCALSTACK_PORT
      export SR_KINESIS_DYNAMODB_ENDPOINT_URL=http://localhost:$SR_LOCALSTACK_DYNAMODB_PORT
    fi
    # Each test has a stream of its own, and waits for most of its time: for JVMs, and for what KCL does by the second.
    run_tier "$name" "localstack" "${parallel[@]}"
  ) || code=$?
  [ "$code" -ne 90 ] || { not_run "$name: no Kinesis endpoint could be started, see above"; return 0; }
  return "$code"
}

engine_fixture() {
  if ! compgen -G "runs/local_full_run-*/*/run_receipt.json" > /dev/null; then
    python scripts/make_engine_run.py --all-outputs --run-key fixture --engine-run-id derived > /dev/null
  fi
  run_tier "tier 3: engine fixtures, every gate of the pack" "engine_fixture"
}

infra() {
  local name="tier 4: infra, the templates for AWS"
  if ! command -v npm >/dev/null 2>&1; then
    not_run "$name: the simulator of policies needs npm (Node.js), and there is none"
    return 0
  fi
  scripts/infra_tools.sh install
  eval "$(scripts/infra_tools.sh env)"
  tests=tests/infra run_tier "$name" "infra"
}

all() {
  remaining=(lint tier0 parity localstack engine_fixture infra)
  local tier
  for tier in "${remaining[@]}"; do
    remaining=("${remaining[@]:1}")
    "$tier"
  done
}

install dev
folders_in_memory
# Without it the tests of alerts and dashboard are skipped, and say so.
[ "${1:-all}" = lint ] || prometheus_tools .local/prometheus || true
case ${1:-all} in
  lint | tier0 | parity | localstack | engine_fixture | infra | all) "${1:-all}" ;;
  *) python -m pytest "$@" ;;
esac
