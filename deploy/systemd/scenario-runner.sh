#!/bin/sh
# scenario-runner as the daemon's user, with the daemon's settings and secrets: sudo scenario-runner doctor
exec systemd-run --quiet --collect --wait --pipe --service-type=exec \
  --uid=scenario-runner --gid=scenario-runner \
  --property=EnvironmentFile=/etc/scenario-runner/scenario-runner.env \
  --property=EnvironmentFile=/etc/scenario-runner/secrets.env \
  --property=StateDirectory=scenario-runner --property=StateDirectoryMode=0700 \
  --property=WorkingDirectory=/var/lib/scenario-runner --property=UMask=0077 \
  /opt/scenario-runner/bin/scenario-runner "$@"
