"""Types of command-line arguments that several commands take."""

import argparse
import re


def parse_size(text: str) -> int:
    """A size in bytes from text such as ``4096``, ``64K``, ``230M`` or ``2G`` (powers of 1024)."""
    match = re.fullmatch(r"([0-9]+)([KMG]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 4096, 64K, 230M or 2G")
    return int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]]


def split_ids(text: str) -> list[str]:
    """Ids separated by commas."""
    return [name for name in text.split(",") if name]


def at_least_one(text: str) -> int:
    """A count of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def not_negative(text: str) -> float:
    """A number of 0 or more."""
    value = float(text)
    if not value >= 0:
        raise argparse.ArgumentTypeError("must not be below 0")
    return value
