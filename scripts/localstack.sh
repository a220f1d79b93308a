#!/usr/bin/env bash
# A Kinesis endpoint on this machine: LocalStack for the stream, and DynamoDB beside it, where KCL keeps its leases.
#
#   scripts/localstack.sh start                            starts both and creates the stream sr-control-bus
#   scripts/localstack.sh stop                             stops both; what they held is gone
#   scripts/localstack.sh status                           what runs, and where (exit 3 when nothing does)
#   scripts/localstack.sh dynamodb                         only DynamoDB, in the foreground
#   scripts/localstack.sh logs [--mode narrative|raw] [-f] the log of LocalStack, as sentences or as it is
#
# LocalStack runs in Docker when there is an engine, else on the host, which needs Python 3.13 and npm. State and
# virtual environments are under .local/localstack. Set SR_LOCALSTACK_HOST=1 to run on the host in any case.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

VERSION=4.14.0 # the last release that needs no account
IMAGE=localstack/localstack:$VERSION
NAME=sr-localstack
STATE=$PWD/.local/localstack
PORT=${SR_LOCALSTACK_PORT:-4566}
DYNAMODB_PORT=${SR_LOCALSTACK_DYNAMODB_PORT:-4567}
STREAM=${SR_KINESIS_STREAM:-sr-control-bus}
REGION=${SR_KINESIS_REGION:-us-east-1}

has_docker() { [ -z "${SR_LOCALSTACK_HOST:-}" ] && command -v docker >/dev/null 2>&1 && docker info >/dev/null 2>&1; }
answers() { curl -sf -o /dev/null --max-time 2 "http://127.0.0.1:$1/_localstack/health"; }
runs() { # NAME: true while the process that was started runs; its number may long mean another one
  [ -f "$STATE/$1.pid" ] && ps -p "$(cat "$STATE/$1.pid")" -o args= 2>/dev/null | grep -qF "$STATE"
}

until_answers() { # PORT WHAT LOG
  local tries=0
  until answers "$1"; do
    tries=$((tries + 1))
    [ "$tries" -lt 240 ] || { tail -n 20 "$3" >&2 || true; die "$2 did not answer on port $1 within two minutes; see $3"; }
    sleep 0.5
  done
}

find_python313() {
  local candidate
  for candidate in "${PYTHON313:-}" python3.13 "$(pyenv prefix 3.13 2>/dev/null || true)/bin/python" \
    "$(pyenv prefix 3.13.0 2>/dev/null || true)/bin/python"; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 13))' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  die "LocalStack $VERSION on the host needs Python 3.13, and there is none: install it or name it in PYTHON313, or start Docker"
}

venv() { # FOLDER PYTHON PACKAGES...: a virtual environment with these packages, made once
  local folder=$1 python=$2
  shift 2
  [ ! -f "$folder/.complete" ] || return 0
  printf 'installing %s ...\n' "$1" >&2
  "$python" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@" 1>&2 || die "pip could not install $1"
  touch "$folder/.complete"
}

detach() { # NAME COMMAND...: start in a session of its own, the log in the state folder
  local name=$1
  shift
  setsid nohup "$@" > "$STATE/$name.log" 2>&1 < /dev/null &
  printf '%s' "$!" > "$STATE/$name.pid"
}

install_dynamodb() {
  mkdir -p "$STATE"
  venv "$STATE/venv-ministack" "$(find_python)" ministack==1.5.33 cbor2 cryptography
  export GATEWAY_PORT=$DYNAMODB_PORT BIND_HOST=127.0.0.1 LOG_LEVEL=WARNING
}

dynamodb() {
  install_dynamodb
  exec "$STATE/venv-ministack/bin/ministack"
}

start_dynamodb() {
  ! answers "$DYNAMODB_PORT" || return 0
  (
    install_dynamodb
    detach dynamodb "$STATE/venv-ministack/bin/ministack"
  )
  until_answers "$DYNAMODB_PORT" "DynamoDB (ministack)" "$STATE/dynamodb.log"
}

start_in_docker() {
  docker rm --force "$NAME" >/dev/null 2>&1 || true
  docker run --detach --name "$NAME" --publish "127.0.0.1:$PORT:4566" \
    --env SERVICES=kinesis,s3 --env KINESIS_LATENCY=0 --env LS_LOG=info "$IMAGE" >/dev/null \
    || die "docker could not run $IMAGE"
}

start_on_host() {
  local modules=$STATE/root/var/lib/localstack/lib/kinesis-local/0.5.2 python
  python=$(find_python313) || exit 2
  command -v npm >/dev/null 2>&1 || die "Kinesis in LocalStack needs npm (Node.js), and there is none: install it, or start Docker"
  venv "$STATE/venv-localstack" "$python" "localstack-core[base-runtime]==$VERSION" moto-ext==5.1.54 'cbor2<6' \
    pyopenssl==25.3.0 'cryptography<47' service-identity 'joserfc<1.8'
  if [ ! -f "$modules/node_modules/kinesis-local/main.js" ]; then
    mkdir -p "$modules"
    npm install --silent --no-fund --no-audit --prefix "$modules" kinesis-local@0.5.2 1>&2 || die "npm could not install kinesis-local"
  fi
  (
    cd "$STATE"
    export OVERRIDE_IN_DOCKER=0 FILESYSTEM_ROOT="$STATE/root" GATEWAY_LISTEN="127.0.0.1:$PORT" SERVICES=kinesis,s3
    export DISABLE_EVENTS=1 SKIP_SSL_CERT_DOWNLOAD=1 DNS_ADDRESS=0 LS_LOG=info KINESIS_LATENCY=0
    detach localstack "$STATE/venv-localstack/bin/python" -m localstack.runtime.main
  )
}

create_stream() {
  AWS_ACCESS_KEY_ID=${AWS_ACCESS_KEY_ID:-test} AWS_SECRET_ACCESS_KEY=${AWS_SECRET_ACCESS_KEY:-test} \
    "$STATE/venv-boto/bin/python" - "http://127.0.0.1:$PORT" "$REGION" "$STREAM" << 'PYTHON'
import sys
import time

import boto3

endpoint, region, name = sys.argv[1:]
kinesis = boto3.client("kinesis", endpoint_url=endpoint, region_name=region)
try:
    kinesis.create_stream(StreamName=name, ShardCount=1)
except kinesis.exceptions.ResourceInUseException:
    pass
while kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]["StreamStatus"] != "ACTIVE":
    time.sleep(0.1)
PYTHON
}

start() {
  mkdir -p "$STATE"
  start_dynamodb
  if ! answers "$PORT"; then
    if has_docker; then start_in_docker; else start_on_host; fi
    until_answers "$PORT" "LocalStack" "$STATE/localstack.log"
  fi
  venv "$STATE/venv-boto" "$(find_python)" boto3
  create_stream
  printf 'Kinesis:  http://localhost:%s  stream %s, region %s\nDynamoDB: http://localhost:%s\n' \
    "$PORT" "$STREAM" "$REGION" "$DYNAMODB_PORT"
  printf 'next: set -a; . ./.env.localstack.example; set +a\n'
}

stop() {
  local name
  if has_docker; then docker rm --force "$NAME" >/dev/null 2>&1 || true; fi
  for name in localstack dynamodb; do
    if runs "$name"; then kill -TERM -- "-$(cat "$STATE/$name.pid")" 2>/dev/null || true; fi
    rm -f "$STATE/$name.pid"
  done
  printf 'stopped\n'
}

status() {
  local code=0
  if answers "$PORT"; then printf 'Kinesis answers on port %s\n' "$PORT"; else printf 'Kinesis does not run\n'; code=3; fi
  if answers "$DYNAMODB_PORT"; then printf 'DynamoDB answers on port %s\n' "$DYNAMODB_PORT"; else printf 'DynamoDB does not run\n'; code=3; fi
  return "$code"
}

logs() {
  local mode=narrative follow=
  while [ "$#" -gt 0 ]; do
    case $1 in
      --mode) mode=${2:-}; shift 2 || die "--mode needs narrative or raw" ;;
      -f | --follow) follow=1; shift ;;
      *) die "logs takes --mode narrative|raw and -f, not $1" ;;
    esac
  done
  case $mode in
    raw) raw_log ;;
    narrative) raw_log | "$(find_python)" scripts/localstack_narrative.py ;;
    *) die "--mode $mode is neither narrative nor raw" ;;
  esac
}

raw_log() { # uses $follow of its caller
  if has_docker && docker inspect "$NAME" >/dev/null 2>&1; then
    docker logs ${follow:+--follow} "$NAME" 2>&1
  elif [ -f "$STATE/localstack.log" ]; then
    if [ -n "$follow" ]; then tail -n +1 -f "$STATE/localstack.log"; else cat "$STATE/localstack.log"; fi
  else
    die "there is no log: LocalStack was not started by this script"
  fi
}

case ${1:-} in
  start | stop | status | dynamodb) "$1" ;;
  logs) shift; logs "$@" ;;
  *) die "usage: scripts/localstack.sh start|stop|status|logs|dynamodb, and for logs [--mode narrative|raw] [-f]" ;;
esac
