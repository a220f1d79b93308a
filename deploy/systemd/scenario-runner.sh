#!/bin/sh
# scenario-runner as the daemon's user, with the daemon's settings and secrets: sudo scenario-runner doctor
set -- /opt/scenario-runner/bin/scenario-runner "$@"
keys=/etc/scenario-runner/aws-credentials # of the drop-in aws-credentials.conf
if [ -e "$keys" ]; then
  # shellcheck disable=SC2016  # expanded by the shell that systemd starts
  set -- "--property=LoadCredential=aws:$keys" \
    /bin/sh -c 'AWS_SHARED_CREDENTIALS_FILE="$CREDENTIALS_DIRECTORY/aws" exec "$@"' sh "$@"
fi
exec systemd-run --quiet --collect --wait --pipe --service-type=exec \
  --uid=scenario-runner --gid=scenario-runner \
  --property=EnvironmentFile=/etc/scenario-runner/scenario-runner.env \
  --property=EnvironmentFile=/etc/scenario-runner/secrets.env \
  --property=StateDirectory=scenario-runner --property=StateDirectoryMode=0700 \
  --property=WorkingDirectory=/var/lib/scenario-runner --property=UMask=0077 \
  "$@"
