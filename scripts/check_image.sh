#!/usr/bin/env bash
# Builds both images of deploy/docker and tries what can be tried of them without AWS: sizes, user, read-only root,
# health check, a daemon that drains a spool, KCL's start.
#
# With Docker where its engine answers. Else, as root on Debian, with buildah and mmdebstrap (apt-get install buildah
# mmdebstrap): the base is then made from Debian's archive, because none can be pulled, and a check runs in a chroot
# whose root file system is mounted read-only. SR_IMAGE_BASE names another base, e.g. one of a mirror.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

# Targets, in MB of files.
declare -A most=([core]=180 [kinesis]=280)
user=10001:10001
state=/var/lib/scenario-runner
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

if docker info >/dev/null 2>&1; then
  engine=docker
elif [ "$(id -u)" -eq 0 ] && command -v buildah >/dev/null && command -v mmdebstrap >/dev/null; then
  engine=buildah
else
  die "neither Docker answers, nor are buildah and mmdebstrap installed (and this is root)"
fi

# make_base: prints the name of an image of Debian's archive, as close to the slim image as its recipe is known. It trusts
# the authorities that this machine was told to trust, such as that of a proxy.
make_base() {
  local suite tag=localhost/scenario-runner-base trust=()
  [ ! -d /usr/local/share/ca-certificates ] \
    || trust=(--customize-hook='copy-in /usr/local/share/ca-certificates /usr/local/share')
  suite=$(sed -n 's/^ARG DEBIAN=debian:\([a-z]*\)-.*/\1/p' deploy/docker/Dockerfile)
  # shellcheck disable=SC2016  # expanded by mmdebstrap
  mmdebstrap --quiet --variant=minbase --aptopt='APT::Install-Recommends "false"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*' \
    "${trust[@]}" "$suite" "$scratch/base.tar" >&2
  printf 'FROM scratch\nADD base.tar /\n' > "$scratch/Dockerfile"
  buildah bud --quiet --isolation chroot --format docker -t "$tag" "$scratch" >&2
  rm "$scratch/base.tar"
  printf '%s' "$tag"
}

# build TARGET: build the image scenario-runner:TARGET.
build() {
  local arguments=(-f deploy/docker/Dockerfile --target "$1" -t "scenario-runner:$1")
  if [ "$engine" = docker ]; then
    docker build --quiet ${base:+--build-arg "DEBIAN=$base"} "${arguments[@]}" . > /dev/null
  else
    buildah bud --layers --isolation chroot --format docker --network host --build-arg "DEBIAN=$base" "${arguments[@]}" . \
      > "$scratch/build.log" 2>&1 || { tail -40 "$scratch/build.log" >&2; die "buildah could not build $1"; }
  fi
}

# inside TARGET USER SCRIPT: run a shell script in the image, with a root that is read-only, as that user, without rights.
inside() {
  if [ "$engine" = docker ]; then
    docker run --rm --read-only --cap-drop ALL --security-opt no-new-privileges --user "$2" --entrypoint /bin/sh \
      "scenario-runner:$1" -euc "$3"
    return
  fi
  local container root code=0
  container=$(buildah from --pull-never "scenario-runner:$1")
  root=$(buildah mount "$container")
  buildah inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "scenario-runner:$1" \
    > "$scratch/env"
  # shellcheck disable=SC2016  # expanded inside
  unshare --mount --pid --fork --kill-child bash -euc '
    mount --bind "$1" "$1"
    mount -o remount,bind,ro "$1"
    mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
    mount -t tmpfs -o "uid=${2%:*},gid=${2#*:},mode=0700" tmpfs "$1$3"
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    mapfile -t variables < <(grep = "$5")
    exec env -i "${variables[@]}" "$(command -v chroot)" --userspec="$2" "$1" /bin/sh -euc "cd $3; $4"
  ' bash "$root" "$2" "$state" "$3" "$scratch/env" || code=$?
  buildah rm "$container" > /dev/null
  return "$code"
}

# expect WHAT COMMAND...: the command succeeds, or the check ends here.
expect() {
  local what=$1
  shift
  "$@" > "$scratch/output" 2>&1 || { cat "$scratch/output" >&2; die "$what: no"; }
  printf 'ok: %s\n' "$what"
}

check() {
  local target=$1 bytes
  step "$target"
  build "$target"
  bytes=$(inside "$target" 0:0 'du --apparent-size -xsB1 --exclude=/proc --exclude=/sys --exclude=/dev / 2>/dev/null | cut -f1')
  printf '%s: %s MB of files, of %s\n' "$target" $((bytes / 1000000)) "${most[$target]}"
  [ $((bytes / 1000000)) -le "${most[$target]}" ] || die "$target is too large"
  # shellcheck disable=SC2016  # expanded inside
  expect "it runs as a user without rights" inside "$target" "$user" '[ "$(id -u):$(id -g)" = '"$user"' ]'
  expect "its root is read-only" inside "$target" "$user" '! touch /etc/x /opt/x'
  expect "the health check says no where no daemon is" inside "$target" "$user" \
    'scenario-runner healthcheck --url http://127.0.0.1:8077 && exit 1 || [ $? -eq 1 ]'
  expect "a daemon drains a spool" inside "$target" "$user" \
    "cd /etc/scenario-runner; mkdir $state/runs; export SR_LOCAL_ROOT=$state/local SR_ENGINE_ROOT=$state/runs;
     scenario-runner serve --until-idle --wiring config/platform/sr/wiring_local.yaml"
}

# What KCL needs of the runtime shows only when it starts; it then waits for a DynamoDB that is not there.
# shellcheck disable=SC2016  # expanded inside
kcl_starts='
  jars=$(python3 -c "from scenario_runner.kcl.config import find_jars; print(find_jars())")
  cat > /tmp/kcl.properties <<END
executableName = true
streamName = s
applicationName = a
workerId = w
regionName = eu-west-1
AwsCredentialsProvider = DefaultCredentialsProvider
initialPositionInStream = TRIM_HORIZON
kinesisEndpoint = http://127.0.0.1:9
dynamoDBEndpoint = http://127.0.0.1:9
metricsLevel = NONE
END
  export AWS_ACCESS_KEY_ID=none AWS_SECRET_ACCESS_KEY=none
  timeout 20 "$JAVA_HOME/bin/java" -cp "$jars/*" software.amazon.kinesis.multilang.MultiLangDaemon \
    --properties-file /tmp/kcl.properties > /tmp/kcl.log 2>&1 || true
  cat /tmp/kcl.log
  grep -q Initializ /tmp/kcl.log
  ! grep -E "NoClassDefFound|ClassNotFound|IntrospectionException" /tmp/kcl.log'

base=${SR_IMAGE_BASE:-}
if [ "$engine" = buildah ] && [ -z "$base" ]; then
  step "base"
  base=$(make_base)
fi
check core
check kinesis
# shellcheck disable=SC2016  # expanded inside
expect "the Java runtime knows root certificates" inside kinesis "$user" \
  '[ "$("$JAVA_HOME/bin/keytool" -list -cacerts -storepass changeit | grep -c trustedCertEntry)" -gt 100 ]'
expect "KCL starts on the Java runtime" inside kinesis "$user" "$kcl_starts"
