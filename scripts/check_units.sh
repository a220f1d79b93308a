#!/usr/bin/env bash
# Boots a systemd of its own, installs the units of deploy/systemd there and tries them: the five commands of the guide
# with a local profile, a request without a daemon, a kill, a wrong configuration, and KCL's JVM inside the sandbox.
#
# As root on Debian or Ubuntu, with apt-get install mmdebstrap systemd-container debian-archive-keyring. Takes minutes: it
# makes a Debian 12 and installs SR there with pip. SR_UNITS_ROOT names a folder that keeps that for the next time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/lib.sh
. scripts/lib.sh

[ "$(id -u)" -eq 0 ] || die "a container of systemd needs root"
for tool in mmdebstrap systemd-nspawn nsenter; do
  command -v "$tool" >/dev/null || die "$tool is not installed: apt-get install mmdebstrap systemd-container util-linux"
done
scratch=$(mktemp -d)
root=${SR_UNITS_ROOT:-$scratch/root}
booted=
trap finish EXIT

finish() {
  [ -z "$booted" ] || kill -KILL "$leader" "$booted" 2>/dev/null || true
  wait 2>/dev/null || true
  rm -rf "$scratch"
}

# inside SCRIPT: run a shell script in the container.
inside() { nsenter --target "$leader" --mount --uts --ipc --pid --net --cgroup /bin/sh -euc "$1"; }

# expect WHAT SCRIPT: the script succeeds in the container, or the check ends here.
expect() {
  inside "$2" > "$scratch/output" 2>&1 || {
    cat "$scratch/output" >&2
    inside 'journalctl -u "scenario-runner*" --no-pager -o cat | tail -20' >&2
    die "$1: no"
  }
  printf 'ok: %s\n' "$1"
}

if [ ! -x "$root/usr/bin/java" ]; then
  step "a Debian with systemd"
  mkdir -p "$root"
  trust=()
  # shellcheck disable=SC2016  # expanded by mmdebstrap
  [ ! -d /usr/local/share/ca-certificates ] \
    || trust=(--customize-hook='copy-in /usr/local/share/ca-certificates /usr/local/share'
              --customize-hook='chroot "$1" update-ca-certificates')
  mmdebstrap --quiet --variant=minbase "${trust[@]}" \
    --include=systemd,systemd-sysv,dbus,python3,python3-venv,ca-certificates,openjdk-17-jre-headless bookworm "$root"
  printf '127.0.0.1 localhost\n' > "$root/etc/hosts"
fi
rm -rf "$root/src" "$root/etc/scenario-runner"
mkdir "$root/src"
cp -R pyproject.toml README.md constraints.txt config daemon deploy scripts "$root/src"
cp -L /etc/resolv.conf "$root/etc/resolv.conf"

step "boot"
systemd-nspawn --register=no --keep-unit --console=pipe --resolv-conf=off -b -D "$root" > "$scratch/console" 2>&1 \
  < /dev/null &
booted=$!
has_leader() { leader=$(pgrep -P "$booted" | head -n 1) && [ -n "$leader" ]; }
wait_until 30 has_leader || die "the container did not start: $(cat "$scratch/console")"
runs() { inside 'systemctl is-system-running --wait' 2>/dev/null | grep -Eq 'running|degraded'; }
wait_until 60 runs || die "systemd did not come up: $(cat "$scratch/console")"

step "the five commands"
expect "install" "cd /src; deploy/systemd/install.sh --constraint constraints.txt '.[kinesis]'"
settings='SR_WIRING=/etc/scenario-runner/config/platform/sr/wiring_local.yaml
SR_POLICY=/etc/scenario-runner/config/platform/sr/policy_v0.yaml
SR_LOCAL_ROOT=/var/lib/scenario-runner/local
SR_ENGINE_ROOT=/var/lib/scenario-runner/runs'
expect "configure" "printf '%s\n' '$settings' > /etc/scenario-runner/scenario-runner.env
  sed -i 's#: config/#: /etc/scenario-runner/config/#' /etc/scenario-runner/config/platform/sr/wiring_local.yaml
  rm -rf /var/lib/scenario-runner; install -d -m 0700 -o scenario-runner /var/lib/scenario-runner /var/lib/scenario-runner/runs"
expect "doctor" "/usr/local/sbin/scenario-runner doctor"
expect "start, until it says that it is ready" "systemctl enable --now scenario-runner; systemctl is-active scenario-runner"
expect "look" "/usr/local/sbin/scenario-runner daemons | grep RUNNING
  systemctl status scenario-runner | grep 'Status: \"role all: ready\"'"

step "what goes wrong, and what runs besides"
expect "a daemon that was killed is started again" "before=\$(systemctl show -p MainPID --value scenario-runner)
  systemctl kill -s KILL --kill-who=main scenario-runner
  for _ in \$(seq 60); do
    now=\$(systemctl show -p MainPID --value scenario-runner)
    [ \"\$now\" = 0 ] || [ \"\$now\" = \"\$before\" ] || ! systemctl is-active -q scenario-runner || exit 0
    sleep 1
  done; exit 1"
expect "a stop is in order" "systemctl stop scenario-runner
  [ \"\$(systemctl show -p Result --value scenario-runner)\" = success ]"
expect "a request without a daemon becomes READY" "cd /var/lib/scenario-runner; umask 0022
  PYTHONPATH=/src/scripts /opt/scenario-runner/bin/python /src/scripts/make_engine_run.py --run-key units --request /tmp/r.json
  chown -R scenario-runner runs; install -m 0644 /tmp/r.json /etc/scenario-runner/requests/units.json
  systemctl start scenario-runner-run@units"
expect "a wrong configuration is not started again" "echo SR_POLICY=/nowhere >> /etc/scenario-runner/scenario-runner.env
  ! systemctl start scenario-runner; sleep 7
  [ \"\$(systemctl show -p ActiveState,NRestarts,ExecMainStatus scenario-runner | sort | tr '\n' ' ')\" \
    = 'ActiveState=failed ExecMainStatus=2 NRestarts=0 ' ]"
properties='executableName = true\nstreamName = s\napplicationName = a\nworkerId = w\nregionName = eu-west-1\n'
properties=$properties'AwsCredentialsProvider = DefaultCredentialsProvider\ninitialPositionInStream = TRIM_HORIZON\n'
properties=$properties'kinesisEndpoint = http://127.0.0.1:9\ndynamoDBEndpoint = http://127.0.0.1:9\nmetricsLevel = NONE\n'
expect "KCL's JVM runs inside the sandbox of the daemon" "d=/run/systemd/system/scenario-runner.service.d; mkdir -p \$d
  printf '$properties' > /etc/scenario-runner/kcl.properties
  jars=\$(echo /opt/scenario-runner/lib/python3*/site-packages/amazon_kclpy/jars)
  printf '[Service]\nType=exec\nRestart=no\nExecStart=\nExecStart=/usr/bin/java -cp %s/* %s --properties-file %s\n' \"\$jars\" \
    software.amazon.kinesis.multilang.MultiLangDaemon /etc/scenario-runner/kcl.properties > \$d/jvm.conf
  printf 'Environment=AWS_ACCESS_KEY_ID=none AWS_SECRET_ACCESS_KEY=none\n' >> \$d/jvm.conf
  systemctl daemon-reload; systemctl reset-failed; systemctl start scenario-runner
  for _ in \$(seq 30); do
    started=\$(systemctl show -p InvocationID --value scenario-runner)
    ! journalctl _SYSTEMD_INVOCATION_ID=\$started -o cat --no-pager | grep -q Initializ || exit 0
    sleep 1
  done; exit 1"
