#!/usr/bin/env bash
# A Kinesis endpoint on this machine: LocalStack for the stream, and DynamoDB, where KCL keeps its leases.
#
#   scripts/localstack.sh start                            starts both and creates the stream sr-control-bus
#   scripts/localstack.sh stop                             stops both; what they held is gone
#   scripts/localstack.sh status                           what runs, and where (exit 3 when one of them does not)
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
health() { printf 'http://127.0.0.1:%s/_localstack/health' "$1"; }

until_answers() { # PORT WHAT LOG
  wait_until 120 answers "$(health "$1")" && return
  tail -n 20 "$3" >&2 || true
  die "$2 did not answer on port $1 within two minutes; see $3"
}

find_python313() {
  first_python 'sys.version_info[:2] == (3, 13)' "${PYTHON313:-}" python3.13 \
    "$(pyenv prefix 3.13 2>/dev/null || true)/bin/python" "$(pyenv prefix 3.13.0 2>/dev/null || true)/bin/python" \
    || die "LocalStack $VERSION on the host needs Python 3.13, and there is none: install it or name it in PYTHON313, or start Docker"
}

venv() { # NAME FIND PACKAGES...: a virtual environment in the state folder with these packages
  local name=$1 find=$2
  shift 2
  pip_into "$STATE/venv-$name" "$STATE/venv-$name/.complete" "$*" "$find" "$@"
}

install_dynamodb() {
  mkdir -p "$STATE"
  venv ministack find_python ministack==1.5.33 cbor2 cryptography
  export GATEWAY_PORT=$DYNAMODB_PORT BIND_HOST=127.0.0.1 LOG_LEVEL=WARNING
}

dynamodb() {
  install_dynamodb
  exec "$STATE/venv-ministack/bin/ministack"
}

start_dynamodb() {
  ! answers "$(health "$DYNAMODB_PORT")" || return 0
  (
    install_dynamodb
    start_detached "$STATE" dynamodb "$STATE/venv-ministack/bin/ministack"
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
  local modules=$STATE/root/var/lib/localstack/lib/kinesis-local/0.5.2
  find_python313 > /dev/null || exit 2
  command -v npm >/dev/null 2>&1 || die "Kinesis in LocalStack needs npm (Node.js), and there is none: install it, or start Docker"
  venv localstack find_python313 "localstack-core[base-runtime]==$VERSION" moto-ext==5.1.54 'cbor2<6' \
    pyopenssl==25.3.0 'cryptography<47' service-identity 'joserfc<1.8'
  if [ ! -f "$modules/node_modules/kinesis-local/main.js" ]; then
    mkdir -p "$modules"
    npm install --silent --no-fund --no-audit --prefix "$modules" kinesis-local@0.5.2 1>&2 || die "npm could not install kinesis-local"
  fi
  (
    cd "$STATE"
    export OVERRIDE_IN_DOCKER=0 FILESYSTEM_ROOT="$STATE/root" GATEWAY_LISTEN="127.0.0.1:$PORT" SERVICES=kinesis,s3
    export DISABLE_EVENTS=1 SKIP_SSL_CERT_DOWNLOAD=1 DNS_ADDRESS=0 LS_LOG=info KINESIS_LATENCY=0
    start_detached "$STATE" localstack "$STATE/venv-localstack/bin/python" -m localstack.runtime.main
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
  if ! answers "$(health "$PORT")"; then
    if has_docker; then start_in_docker; else start_on_host; fi
    until_answers "$PORT" "LocalStack" "$STATE/localstack.log"
  fi
  venv boto find_python boto3
  create_stream
  printf 'Kinesis:  http://localhost:%s  stream %s, region %s\nDynamoDB: http://localhost:%s\n' \
    "$PORT" "$STREAM" "$REGION" "$DYNAMODB_PORT"
  printf 'next: set -a; . ./.env.localstack.example; set +a\n'
}

stop() {
  if has_docker; then docker rm --force "$NAME" >/dev/null 2>&1 || true; fi
  stop_detached "$STATE" localstack "$STATE"
  stop_detached "$STATE" dynamodb "$STATE"
  printf 'stopped\n'
}

status() {
  local code=0
  if answers "$(health "$PORT")"; then printf 'Kinesis answers on port %s\n' "$PORT"; else printf 'Kinesis does not run\n'; code=3; fi
  if answers "$(health "$DYNAMODB_PORT")"; then printf 'DynamoDB answers on port %s\n' "$DYNAMODB_PORT"; else printf 'DynamoDB does not run\n'; code=3; fi
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
