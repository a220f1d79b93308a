#!/bin/sh
# Prints the request for one day, yesterday unless SR_RUN_DAY=2026-01-31 says another; see daily.conf. The same day again
# is the same request, and so the same run.
set -eu
day=${SR_RUN_DAY:-$(date -u -d yesterday +%F)}
next=$(date -u -d "$day + 1 day" +%F)
/opt/scenario-runner/bin/scenario-runner submit --print \
  --run-equivalence-key "nightly-$day" --invoker example-team \
  --manifest-fingerprint 0000000000000000000000000000000000000000000000000000000000000000 \
  --parameter-hash 0000000000000000000000000000000000000000000000000000000000000000 \
  --seed 7 --scenario-id baseline_v1 --engine-run-root "s3://example-engine-runs/runs/$day" \
  --window-start "${day}T00:00:00Z" --window-end "${next}T00:00:00Z"
