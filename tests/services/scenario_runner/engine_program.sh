#!/bin/sh
# Stamps the launch of an engine within a millisecond, then becomes engine_program.py, whose interpreter takes 30 to start.
# PYTHON PROGRAM FOLDER RUN_ID RUN_ROOT SEED ATTEMPT_NO
printf '{"what":"begin","run_id":"%s","attempt_id":"%s","attempt_no":%s,"pid":%s}\n' "$4" "$SR_ATTEMPT_ID" "$7" "$$" \
  >> "$3/trace.jsonl"
exec "$1" -I -S "$2" "$3" "$4" "$5" "$6" "$7"
