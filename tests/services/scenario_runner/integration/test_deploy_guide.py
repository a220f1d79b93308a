"""docs/guides/deploying.md names commands, files and operations that exist."""

from __future__ import annotations

import re

import pytest
from deploy_support import DEPLOY, load_profiles, read_settings
from support import REPO

from scenario_runner.cli import stopping

pytestmark = pytest.mark.integration

GUIDE = (REPO / "docs/guides/deploying.md").read_text("utf-8")
BLOCKS = "\n".join(re.findall(r"^```sh\n(.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)).replace("\\\n", " ")


def test_the_five_commands_are_those_of_the_readme_beside_the_units() -> None:
    def steps(text: str) -> list[str]:
        return [re.sub(r" +", " ", line) for line in re.findall(r"^.+ # [1-5]\. .+$", text, flags=re.MULTILINE)]

    assert len(steps(GUIDE)) == 5
    assert steps(GUIDE) == steps((DEPLOY / "systemd/README.md").read_text("utf-8"))


def test_every_file_of_the_guide_exists() -> None:
    named = set(re.findall(r"(?<!/)(?:deploy|config)/[\w./@-]*[\w]\.[a-z]+", GUIDE))
    assert named
    assert [name for name in sorted(named) if not (REPO / name).is_file()] == []
    tables = re.findall(r"`([\w.]+\.(?:task|service|schedule)\.json)`", GUIDE)
    assert {path.name for path in (DEPLOY / "ecs").glob("*.json")} == set(tables)


def test_every_operation_of_aws_exists() -> None:
    session = pytest.importorskip("botocore.session").get_session()
    from botocore import xform_name

    called = re.findall(r"^aws (\w+) ([\w-]+)(?: ([\w-]+))?", BLOCKS, flags=re.MULTILINE)
    assert called
    for service, operation, waiter in called:
        if operation == "wait":
            names = session.get_waiter_model(service).waiter_names
            assert waiter in {xform_name(name, "-") for name in names}
        else:
            names = session.get_service_model(service).operation_names
            assert operation in {xform_name(name, "-") for name in names}


def test_every_unit_and_every_image_of_the_guide_exists() -> None:
    units = {path.name.removesuffix(".service") for path in (DEPLOY / "systemd").glob("*.service")}
    named = re.findall(r"^systemctl (?:start|enable --now|restart) ([\w@-]+)", BLOCKS, flags=re.MULTILINE)
    assert {re.sub(r"@.*", "@", name) for name in named} == units
    targets = re.findall(r"--target (\w+)", BLOCKS)
    dockerfile = (DEPLOY / "docker/Dockerfile").read_text("utf-8")
    assert sorted(targets) == ["core", "kinesis"]
    assert all(re.search(rf"^FROM \w+ AS {target}$", dockerfile, flags=re.MULTILINE) for target in targets)


def test_the_guide_explains_every_setting() -> None:
    table = GUIDE.partition("**Settings.**")[2].partition("**Time to stop.**")[0]
    explained = set(re.findall(r"`(SR_\w+)`", table))
    assert explained == set(read_settings(DEPLOY / "systemd/scenario-runner.env"))


def test_the_settings_of_the_container_are_whole_and_as_docker_reads_them() -> None:
    (block,) = re.findall(r"^```\n(SR_S3_BUCKET=.*?)^```", GUIDE, flags=re.MULTILINE | re.DOTALL)
    assert not {'"', "'"} & set(block)
    given = dict(line.split("=", 1) for line in block.splitlines())
    image = dict(re.findall(r" (SR_\w+)=(\S+)", (DEPLOY / "docker/Dockerfile").read_text("utf-8")))
    assert load_profiles(image | given).control_bus_kind == "kinesis"


def test_the_longest_stop_is_told_in_the_same_words_everywhere() -> None:
    sentence = "the larger of shutdown_seconds and, on a stream, 23 s, plus 30 s; never above 117 s"
    places = [REPO / "docs/guides" / f"{name}.md" for name in ("deploying", "rollout", "install", "engines")]
    places += [DEPLOY / "systemd/scenario-runner.service", DEPLOY / "systemd/scenario-runner-run@.service"]
    for place in places:
        text = re.sub(r"[\s#]+", " ", place.read_text("utf-8").replace("`", ""))
        assert sentence in text, place
    most, least = stopping._MOST_SECONDS, stopping._STREAM_SECONDS
    assert (most, least, stopping._LAST_RESORT_SECONDS) == (117, 23, 30)
