"""Verification depth: where the SHA-256 of the files of an output comes from. Pure.

Gates, flags and indexes are always read. A depth stands in documents only where the policy allows another one than
``read``, so that documents under any other policy are what they always were.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from scenario_runner.contracts.canonical import Json


class DigestSource(StrEnum):
    """Where the SHA-256 of one file comes from."""

    READ = "read"
    """Its bytes were read and hashed."""
    S3_CHECKSUM = "s3_checksum"
    """S3 computed it over the whole object when the object was written, and keeps it with that object."""


DEPTH: Final = "verification_depth"
"""The attribute of READY, and the key of an output in a report."""
READ_FILES: Final = "read_files"
"""The key of an output in a report: those of its files that were read although the output's depth is less."""


def least(sources: Iterable[DigestSource]) -> DigestSource:
    """The depth of what was digested in several ways: it is no deeper than its least deep part."""
    return DigestSource.S3_CHECKSUM if DigestSource.S3_CHECKSUM in set(sources) else DigestSource.READ


def reported_depth(outputs: Iterable[Json]) -> dict[str, str]:
    """The attribute of READY that follows from the outputs of a report; empty where no output says its depth.

    Args:
        outputs: Entries of the outputs, as the event RECEIPTS_COMMITTED has them.
    """
    sources = [DigestSource(item[DEPTH]) for item in outputs if DEPTH in item]
    return {DEPTH: least(sources).value} if sources else {}
