"""The policy profile: strict, and its content digest is checked, so it cannot drift unseen."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scenario_runner.contracts.errors import ConfigurationError
from scenario_runner.contracts.plan import DEFAULT_BOUNDS, EvidenceBounds
from scenario_runner.profiles.policy import Retention, load_policy, policy_digest, read_policy

pytestmark = pytest.mark.unit

COMMITTED = Path(__file__).resolve().parents[4] / "config/platform/sr/policy_v0.yaml"
CONTENT: dict[str, Any] = {
    "policy_id": "test_policy",
    "revision": "v0",
    "reuse_policy": "ALLOW",
    "evidence_wait_seconds": 3600,
    "attempt_limit": 3,
    "traffic_output_ids": ["arrival_events_5B"],
}


def by_hand(content: dict[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != "content_digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def write(folder: Path, content: dict[str, Any], digest: str | None = None) -> str:
    """A policy file with the right digest, unless another is given."""
    path = folder / "policy.yaml"
    document = {**content, "content_digest": by_hand(content) if digest is None else digest}
    path.write_text(yaml.safe_dump(document), "utf-8")
    return str(path)


def refusal(path: str, env: dict[str, str] | None = None) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as refused:
        load_policy(path, env={} if env is None else env)
    assert refused.value.place.startswith(path)
    assert refused.value.remedy
    return refused.value


def test_the_committed_policy_loads_and_carries_its_own_digest() -> None:
    policy = load_policy(str(COMMITTED), env={})
    assert policy.content_digest == by_hand(yaml.safe_load(COMMITTED.read_text("utf-8")))
    assert policy.traffic_output_ids == [
        "arrival_events_5B",
        "s2_flow_anchor_baseline_6B",
        "s3_flow_anchor_with_fraud_6B",
    ]
    assert policy.attempt_limit >= 1
    assert policy.rev().wire() == {"policy_id": policy.policy_id, "revision": policy.revision,
                                   "content_digest": policy.content_digest}  # fmt: skip


def test_a_policy_with_the_right_digest_loads(tmp_path: Path) -> None:
    policy = load_policy(write(tmp_path, CONTENT), env={})
    assert policy.model_dump(exclude={"content_digest"}, exclude_unset=True) == CONTENT
    assert policy.bounds() == DEFAULT_BOUNDS


@pytest.mark.parametrize(
    ("key", "value"),
    [("reuse_policy", "DENY"), ("evidence_wait_seconds", 3601), ("attempt_limit", 4), ("traffic_output_ids", []),
     ("revision", "v1"), ("policy_id", "other")],
)  # fmt: skip
def test_any_change_without_a_new_digest_refuses_start_up_and_says_the_right_one(
    tmp_path: Path, key: str, value: object
) -> None:
    changed = CONTENT | {key: value}
    error = refusal(write(tmp_path, changed, digest=by_hand(CONTENT)))
    assert "content_digest" in error.place
    assert by_hand(changed) in error.problem
    assert load_policy(write(tmp_path, changed), env={}).content_digest == by_hand(changed)


def test_the_order_of_keys_and_the_layout_do_not_change_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    body = yaml.safe_dump(dict(reversed(CONTENT.items())), sort_keys=False, default_flow_style=False)
    path.write_text(f"# a comment\n\ncontent_digest: {by_hand(CONTENT)}\n{body}", "utf-8")
    assert load_policy(str(path), env={}).policy_id == "test_policy"


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(
    st.dictionaries(
        st.text("abcdef_", min_size=1, max_size=8),
        st.integers(0, 2**64 - 1) | st.text("abé \n", max_size=5) | st.lists(st.booleans(), max_size=3),
        max_size=5,
    )
)
def test_the_digest_is_over_everything_but_itself(content: dict[str, Any]) -> None:
    assert policy_digest(content, "x") == by_hand(content)
    assert policy_digest({**content, "content_digest": "whatever"}, "x") == by_hand(content)


@pytest.mark.parametrize("key", sorted(CONTENT))
def test_every_key_is_needed(tmp_path: Path, key: str) -> None:
    content = {name: value for name, value in CONTENT.items() if name != key}
    assert key in refusal(write(tmp_path, content)).problem


def test_a_policy_without_its_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(CONTENT), "utf-8")
    assert "content_digest" in refusal(str(path)).problem


@pytest.mark.parametrize("key", ["reuse", "evidence_wait_second", "require_gates", ""])
def test_an_unknown_key_is_refused_by_name(tmp_path: Path, key: str) -> None:
    assert key in refusal(write(tmp_path, CONTENT | {key: 1})).problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reuse_policy", "allow"), ("reuse_policy", True), ("reuse_policy", "MAYBE"), ("reuse_policy", None),
        ("evidence_wait_seconds", -1), ("evidence_wait_seconds", "3600"), ("evidence_wait_seconds", True),
        ("evidence_wait_seconds", 366 * 86400 + 1), ("attempt_limit", 0), ("attempt_limit", -1),
        ("attempt_limit", "3"), ("attempt_limit", True), ("attempt_limit", 2**64 - 1 + 2**64),
        ("traffic_output_ids", "arrival_events_5B"), ("traffic_output_ids", [1]), ("traffic_output_ids", ["a/b"]),
        ("traffic_output_ids", [".."]), ("traffic_output_ids", [""]), ("policy_id", ""), ("policy_id", 7),
        ("policy_id", "a\nb"), ("revision", -1), ("revision", True), ("revision", ""), ("max_output_bytes", 0),
        ("max_output_bytes", "1T"), ("max_output_bytes", 1 << 63), ("max_output_files", 0), ("max_output_files", True),
        ("max_output_files", 10_000_001), ("max_look_seconds", 0), ("max_look_seconds", 7 * 86400 + 1),
    ],
)  # fmt: skip
def test_a_bad_value_is_refused(tmp_path: Path, key: str, value: object) -> None:
    refusal(write(tmp_path, CONTENT | {key: value}))


def test_bounds_of_the_evidence_are_optional(tmp_path: Path) -> None:
    assert load_policy(write(tmp_path, CONTENT), env={}).bounds() == EvidenceBounds(1 << 40, 200_000, 3600)
    named = CONTENT | {"max_output_bytes": 1, "max_output_files": 2, "max_look_seconds": 3}
    assert load_policy(write(tmp_path, named), env={}).bounds() == EvidenceBounds(1, 2, 3)


def test_a_number_may_name_the_revision(tmp_path: Path) -> None:
    assert load_policy(write(tmp_path, CONTENT | {"revision": 7}), env={}).rev().wire()["revision"] == 7


@pytest.mark.parametrize("value", ["0.5", "3.0", ".nan", ".inf", "0x" + "f" * 5000, "-9223372036854775809"])
def test_a_number_without_a_canonical_form_is_refused_and_not_our_defect(tmp_path: Path, value: str) -> None:
    path = tmp_path / "policy.yaml"
    content = {key: item for key, item in CONTENT.items() if key != "attempt_limit"}
    path.write_text(yaml.safe_dump({**content, "content_digest": "0" * 64}) + f"attempt_limit: {value}\n", "utf-8")
    refusal(str(path))


@pytest.mark.parametrize("digest", ["", "0" * 63, "G" * 64, "0" * 64 + "\n", by_hand(CONTENT).upper()])
def test_a_digest_that_is_no_sha256_is_refused(tmp_path: Path, digest: str) -> None:
    refusal(write(tmp_path, CONTENT, digest=digest))


@pytest.mark.parametrize("text", ["[]\n", "x\n", "7\n", "---\n", ""])
def test_a_policy_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text, "utf-8")
    refusal(str(path))


def test_a_key_given_twice_is_refused_naming_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, CONTENT)
    with open(path, "a", encoding="utf-8") as file:
        file.write("reuse_policy: DENY\n")
    assert "line " in refusal(path).place


def test_a_missing_file_is_a_configuration_error(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(str(tmp_path / "none.yaml")).problem


def test_the_digest_is_over_the_values_after_the_environment_was_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    content = {key: item for key, item in CONTENT.items() if key != "attempt_limit"}
    digest = by_hand({**content, "attempt_limit": 5})
    path.write_text(yaml.safe_dump({**content, "content_digest": digest}) + "attempt_limit: ${LIMIT:-3}\n", "utf-8")
    assert load_policy(str(path), env={"LIMIT": "5"}).attempt_limit == 5
    assert "content_digest" in refusal(str(path)).place
    assert policy_digest(read_policy(str(path), env={"LIMIT": "5"}), "x") == digest


def test_a_policy_cannot_be_changed_after_it_was_read(tmp_path: Path) -> None:
    policy = load_policy(write(tmp_path, CONTENT), env={})
    with pytest.raises(Exception, match="frozen"):
        policy.reuse_policy = "DENY"  # type: ignore[misc]


def test_what_is_not_kept_for_ever_is_said_in_days(tmp_path: Path) -> None:
    assert load_policy(write(tmp_path, CONTENT), env={}).retention == Retention()
    kept = {"intake_records_days": 30, "spool_consumed_days": 7}
    assert load_policy(write(tmp_path, {**CONTENT, "retention": kept}), env={}).retention == Retention(**kept)
    assert load_policy(write(tmp_path, {**CONTENT, "retention": {"outbox_sent_days": None}}), env={}).retention == (
        Retention()
    )


@pytest.mark.parametrize("days", [0, -1, 36_501, "7", 1.5, True])
def test_days_of_retention_are_whole_and_one_at_least(tmp_path: Path, days: object) -> None:
    if isinstance(days, float):
        days = str(days)  # a float has no digest
    refused = refusal(write(tmp_path, {**CONTENT, "retention": {"outbox_sent_days": days}}))
    assert "retention.outbox_sent_days" in refused.problem


def test_a_kind_that_is_never_removed_cannot_be_named(tmp_path: Path) -> None:
    assert "retention.runs_days" in refusal(write(tmp_path, {**CONTENT, "retention": {"runs_days": 7}})).problem


def test_the_digest_covers_the_retention_and_a_policy_without_one_keeps_the_digest_that_it_had() -> None:
    limited = {**CONTENT, "retention": {"intake_records_days": 30}}
    assert policy_digest(limited, "here") == by_hand(limited) != policy_digest(CONTENT, "here")
