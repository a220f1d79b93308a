"""Interface packs by digest: the deployed one, and those that runs were pinned to."""

from typing import Any

import pytest

from scenario_runner.contracts.canonical import canonical_sha256
from scenario_runner.contracts.errors import Unavailable
from scenario_runner.interface_pack.loader import build_pack
from scenario_runner.ledger.packs import PinnedPacks

pytestmark = pytest.mark.unit


def pack(output_id: str) -> Any:
    gate = {
        "gate_id": "g", "scope": "fingerprint", "passed_flag_path_template": "g/_passed.flag",
        "bundle_root_template": "g/", "authorizes_outputs": [output_id],
        "verification_method": {"kind": "sha256_bundle_digest", "digest_field": "sha256_hex", "ordering": "ascii_lex"},
    }  # fmt: skip
    output = {"output_id": output_id, "path_template": "out/x.json", "scope": "scope_global"}
    return build_pack({"outputs": [output]}, {"gates": [gate]})


class Pinned:
    """A ledger that holds some packs, and counts how often it is asked."""

    def __init__(self, *documents: Any) -> None:
        self.held = {canonical_sha256(document): document for document in documents}
        self.asked: list[str] = []

    def read_pack(self, digest: str) -> Any:
        self.asked.append(digest)
        return self.held.get(digest)


def packs_on(ledger: Any) -> PinnedPacks:
    return PinnedPacks(pack("deployed"), ledger)


def test_the_deployed_pack_is_not_looked_for_and_a_pinned_one_is_read_once() -> None:
    former = pack("former")
    ledger = Pinned(former.document)
    packs = packs_on(ledger)
    assert packs.get(packs.current.digest) is packs.current
    assert ledger.asked == []
    assert packs.get(former.digest).document == former.document
    assert packs.get(former.digest) is packs.get(former.digest)
    assert ledger.asked == [former.digest]


def test_a_pinned_pack_that_is_not_there_is_waited_for_and_looked_for_again() -> None:
    former = pack("former")
    ledger = Pinned()
    packs = packs_on(ledger)
    with pytest.raises(Unavailable, match="is not in the ledger; restore it there"):
        packs.get(former.digest)
    ledger.held[former.digest] = former.document
    assert packs.get(former.digest).digest == former.digest


def test_a_pack_that_this_release_reads_as_another_one_is_left_to_the_release_that_pinned_it() -> None:
    """It may hold what this release does not know, and what is not known was not judged."""
    document = pack("former").document
    newer = {**document, "gates": [{**gate, "also_needs": "two signatures"} for gate in document["gates"]]}
    ledger = Pinned(newer)
    with pytest.raises(Unavailable, match="was pinned by another release"):
        packs_on(ledger).get(canonical_sha256(newer))


def test_a_pack_that_this_release_cannot_read_is_waited_for() -> None:
    ledger = Pinned({"outputs": [], "gates": []})
    (digest,) = ledger.held
    with pytest.raises(Unavailable, match="cannot read the pinned interface pack"):
        packs_on(ledger).get(digest)
