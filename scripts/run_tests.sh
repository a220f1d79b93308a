#!/usr/bin/env bash
# Installs what the tests need and runs every check that this machine can run; says plainly what it could not.
#
#   scripts/run_tests.sh                  lint, types, and all tests of tier 0 (no external service)
#   scripts/run_tests.sh PYTEST_ARGS...   only pytest, with these arguments
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh
install dev

tests=tests/services/scenario_runner
if [ "$#" -gt 0 ]; then
  exec python -m pytest "$@"
fi

printf '== ruff\n'
ruff check daemon tests scripts
ruff format --check daemon tests scripts
printf '== mypy --strict\n'
mypy
printf '== tier 0: unit and integration, no external service\n'
python -m pytest "$tests" -m "not parity and not localstack and not engine_fixture" -q
printf '\nnot run: tier 1 (parity), tier 2 (localstack), tier 3 (engine_fixture): no tests of these tiers exist yet\n'
