#!/bin/sh
# scenario-runner as the daemon's user, with the daemon's settings and secrets: sudo scenario-runner doctor
# It runs in /var/lib/scenario-runner and reads files as that user: give a file of yours by `- < file`.
set -- /opt/scenario-runner/bin/scenario-runner "$@"
keys=/etc/scenario-runner/aws-credentials # of the drop-in aws-credentials.conf
if [ -e "$keys" ]; then
  # shellcheck disable=SC2016  # expanded by the shell that systemd starts
  set -- "--property=LoadCredential=aws:$keys" \
    /bin/sh -c 'AWS_SHARED_CREDENTIALS_FILE="$CREDENTIALS_DIRECTORY/aws" exec "$@"' sh "$@"
fi
# Before 254 systemd always replaces ${NAME}, and words that are $NAME.
version=$(systemd-run --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
[ "${version:-0}" -lt 254 ] || set -- --expand-environment=no "$@"
# systemd-run that is ended leaves its unit running: Ctrl-C, or the end of the session, stops it here.
unit=scenario-runner-command-$$
trap 'kill "$!"; systemctl stop "$unit" 2>/dev/null; exit 130' HUP INT TERM
# In the background, because a trap waits for a command of the foreground; there it would have no standard input.
exec 3<&0
systemd-run --quiet --collect --wait --pipe --service-type=exec --unit="$unit" \
  --uid=scenario-runner --gid=scenario-runner \
  --property=EnvironmentFile=/etc/scenario-runner/scenario-runner.env \
  --property=EnvironmentFile=/etc/scenario-runner/secrets.env \
  --property=StateDirectory=scenario-runner --property=StateDirectoryMode=0700 \
  --property=WorkingDirectory=/var/lib/scenario-runner --property=UMask=0077 \
  --property=TimeoutStopSec=120 --property=LimitCORE=0 \
  "$@" <&3 3<&- &
wait "$!"
