#!/bin/sh
# Installs Scenario Runner for systemd, as root. Settings that are there already are kept.
#
#   install.sh PIP_ARGUMENTS...    what pip installs: 'scenario-runner[s3,postgres,kinesis]', or a wheel and its extras
#
# ROOT      another root folder, e.g. of an image; nothing is told to a running systemd then
# PYTHON    a Python 3.11 or newer (default: python3)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=${ROOT:-}
settings=$root/etc/scenario-runner
[ "$#" -gt 0 ] || { echo "usage: install.sh PIP_ARGUMENTS..." >&2; exit 2; }

"${PYTHON:-python3}" -m venv "$root/opt/scenario-runner"
"$root/opt/scenario-runner/bin/python" -m pip install --quiet --upgrade "$@"

install -d -m 0755 "$settings" "$settings/requests" "$root/etc/systemd/system" "$root/etc/sysusers.d" \
  "$root/usr/local/sbin"
[ -e "$settings/config" ] || cp -R "$root/opt/scenario-runner/share/scenario-runner/config" "$settings/config"
[ -e "$settings/scenario-runner.env" ] || install -m 0644 "$here/scenario-runner.env" "$settings/scenario-runner.env"
[ -e "$settings/secrets.env" ] || install -m 0600 "$here/secrets.env" "$settings/secrets.env"
install -m 0644 "$here/scenario-runner.service" "$here/scenario-runner-run@.service" "$root/etc/systemd/system/"
install -m 0644 "$here/sysusers.conf" "$root/etc/sysusers.d/scenario-runner.conf"
install -m 0755 "$here/scenario-runner.sh" "$root/usr/local/sbin/scenario-runner"

if [ -z "$root" ]; then
  systemd-sysusers scenario-runner.conf
  systemctl daemon-reload
fi
echo "installed; now edit $settings/scenario-runner.env and $settings/secrets.env, then: scenario-runner doctor"
