"""Which engine run roots a request may name: whole folders, in one normal form."""

import pytest

from scenario_runner.contracts.errors import RequestRefused
from scenario_runner.contracts.reasons import Reason
from scenario_runner.intake.roots import normalise_root

pytestmark = pytest.mark.unit

ALLOWED = ["/data/runs", "s3://bucket/runs", "s3://whole"]

TAKEN = {
    "/data/runs": "/data/runs",
    "/data/runs/one": "/data/runs/one",
    "/data//runs/./one/": "/data/runs/one",
    "//data/runs/one": "/data/runs/one",
    "one/two": "/data/runs/one/two",
    ".": "/data/runs",
    "file:///data/runs/one": "/data/runs/one",
    "/data/runs/a..b": "/data/runs/a..b",
    "s3://bucket/runs": "s3://bucket/runs",
    "s3://bucket/runs/one/": "s3://bucket/runs/one",
    "s3://whole": "s3://whole",
    "s3://whole/any/where": "s3://whole/any/where",
    "s3://whole/" + "é" * 511: "s3://whole/" + "é" * 511,
}

NOT_UNDER = "not under any"
SCHEME = "scheme is not served"
FORM = "'..', a backslash or a wildcard"
REFUSED = {
    "/data/runs1": NOT_UNDER,
    "/data/run": NOT_UNDER,
    "/data": NOT_UNDER,
    "/": NOT_UNDER,
    "/etc/passwd": NOT_UNDER,
    "s3://bucket/runs1": NOT_UNDER,
    "s3://bucket": NOT_UNDER,
    "s3://other/runs": NOT_UNDER,
    "http://data/runs": SCHEME,
    "gs://bucket/runs": SCHEME,
    "S3://bucket/runs": SCHEME,
    "one/x://y": SCHEME,
    "file://one": SCHEME,
    "file://http://one": SCHEME,
    "/data/runs/../runs/one": FORM,
    "..": FORM,
    "one/..": FORM,
    "/data/runs/a\\b": FORM,
    "/data/runs/*": FORM,
    "s3://bucket/runs/*": "wildcard",
    "s3://bucket/runs/a?b": "wildcard",
    "s3://bucket/runs/a#b": "wildcard",
    "s3://bucket/runs/%2e%2e": "wildcard",
    "s3://bucket/runs/../other": "normalised",
    "s3:///runs": "bucket name",
    "s3://whole/" + "é" * 511 + "x": "so long",
}


@pytest.mark.parametrize("text", TAKEN)
def test_a_root_at_or_under_an_allowed_one_is_taken_in_its_one_form(text: str) -> None:
    assert normalise_root(text, ALLOWED, "/data/runs") == TAKEN[text]


@pytest.mark.parametrize("text", REFUSED)
def test_every_other_root_is_refused_with_the_reason(text: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        normalise_root(text, ALLOWED, "/data/runs")
    assert refused.value.reason is Reason.ENGINE_ROOT_NOT_ALLOWED
    assert REFUSED[text] in refused.value.detail


def test_the_root_of_the_file_system_allows_every_folder_and_nothing_allows_none() -> None:
    assert normalise_root("/any/where", ["/"], "/") == "/any/where"
    with pytest.raises(RequestRefused):
        normalise_root("/any/where", [], "/")
