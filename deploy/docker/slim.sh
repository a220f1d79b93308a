#!/bin/sh
# slim.sh FOLDER REQUIREMENT: an environment for the image: what constraints.txt pins, compiled, without what is never
# used at run time. Runs at the root of the repository; also outside of a container, as the test of sizes does.
set -eu
folder=$1 requirement=$2

"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --constraint constraints.txt \
  "$requirement"
# typer asks for rich, and uses it only for help texts in colours, which SR does not have.
"$folder/bin/python" -m pip uninstall --quiet --disable-pip-version-check --yes \
  rich markdown-it-py mdurl pygments pip

site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
# Descriptions of the AWS services that SR calls, and of those by which the SDK gets credentials.
if [ -d "$site/botocore/data" ]; then
  find "$site/botocore/data" -mindepth 1 -maxdepth 1 -type d ! -name cloudwatch ! -name dynamodb ! -name ecs \
    ! -name kinesis ! -name s3 ! -name signin ! -name sqs ! -name sso ! -name sso-oidc ! -name sts -exec rm -rf {} +
fi
# What the SDK brings for resources and its manual: SR uses clients only.
rm -rf "$site/boto3/data" "$site/boto3/examples"
