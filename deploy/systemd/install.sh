#!/bin/sh
# Installs Scenario Runner for systemd, as root. Settings that are there already are kept; SR's own schemas are replaced.
#
#   install.sh PIP_ARGUMENTS...    what pip installs: '.[s3,postgres,kinesis]' in a clone, or a wheel and its extras:
#                                  './scenario_runner-0.1.0-py3-none-any.whl[s3,postgres,kinesis]'
#
# ROOT      another root folder, e.g. of an image; nothing is told to a running systemd then
# PYTHON    a Python 3.11 or newer (default: python3)
set -eu
umask 022
here=$(cd "$(dirname "$0")" && pwd)
root=${ROOT:-}
settings=$root/etc/scenario-runner
[ "$#" -gt 0 ] || { echo "usage: install.sh PIP_ARGUMENTS..." >&2; exit 2; }
for word; do
  case $word in
    scenario[-_.]runner | scenario[-_.]runner[[=]*)
      echo "install.sh: $word on PyPI is another project's; name a folder or a wheel: '.[s3]', './NAME.whl[s3]'" >&2
      exit 2 ;;
  esac
done

"${PYTHON:-python3}" -m venv "$root/opt/scenario-runner"
"$root/opt/scenario-runner/bin/python" -m pip install --quiet --upgrade "$@"

shared=$root/opt/scenario-runner/share/scenario-runner
schemas=config/platform/contracts/scenario_runner
install -d -m 0755 "$settings" "$settings/requests" "$root/etc/systemd/system" "$root/etc/sysusers.d" \
  "$root/usr/local/sbin"
[ -e "$settings/config" ] || cp -R "$shared/config" "$settings/config"
# Schemas of SR's own documents, and no settings: each release writes what its own schemas allow.
rm -rf "${settings:?}/$schemas"
install -d -m 0755 "$settings/$schemas"
cp -R "$shared/$schemas/." "$settings/$schemas/"
[ -e "$settings/scenario-runner.env" ] || install -m 0644 "$here/scenario-runner.env" "$settings/scenario-runner.env"
[ -e "$settings/secrets.env" ] || install -m 0600 "$here/secrets.env" "$settings/secrets.env"
install -m 0644 "$here/scenario-runner.service" "$here/scenario-runner-run@.service" "$root/etc/systemd/system/"
install -m 0644 "$here/sysusers.conf" "$root/etc/sysusers.d/scenario-runner.conf"
install -m 0755 "$here/scenario-runner.sh" "$root/usr/local/sbin/scenario-runner"

if [ -z "$root" ]; then
  systemd-sysusers scenario-runner.conf
  systemctl daemon-reload
fi
echo "installed; $settings/$schemas is that of this release, other settings were kept"
echo "now edit $settings/scenario-runner.env and $settings/secrets.env, then: scenario-runner doctor"
