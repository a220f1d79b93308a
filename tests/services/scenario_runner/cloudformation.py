"""Reads templates of CloudFormation: tags like ``!Ref`` become what they abbreviate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

TEMPLATES = Path(__file__).resolve().parents[3] / "infra/aws"
NAMES = ("data.yaml", "access.yaml", "service.yaml")


class _Loader(yaml.SafeLoader):
    pass


def _tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        assert isinstance(node, yaml.MappingNode)
        value = loader.construct_mapping(node, deep=True)
    if suffix == "GetAtt":
        value = value.split(".", 1)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


_Loader.add_multi_constructor("!", _tagged)  # type: ignore[no-untyped-call]


def template(name: str) -> dict[str, Any]:
    """A template of infra/aws."""
    found: dict[str, Any] = yaml.load((TEMPLATES / name).read_text("utf-8"), Loader=_Loader)
    return found


def statements(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The statements of a policy document, also those that depend on a condition of the template."""
    for item in document["Statement"]:
        for statement in item["Fn::If"][1:] if "Fn::If" in item else [item]:
            if "Effect" in statement:
                yield statement


def actions(statement: Mapping[str, Any]) -> list[str]:
    """The actions of a statement."""
    found = statement["Action"]
    return [found] if isinstance(found, str) else list(found)
