"""A run request that is made of the flags of ``submit``. The module is imported for ``--help`` too: it loads little."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer

from scenario_runner.contracts.canonical import Json
from scenario_runner.contracts.errors import UsageError
from scenario_runner.contracts.times import zones

_FLAGS: Final = {
    "run_equivalence_key": "--run-equivalence-key",
    "manifest_fingerprint": "--manifest-fingerprint",
    "parameter_hash": "--parameter-hash",
    "seed": "--seed",
    "scenario.scenario_id": "--scenario-id",
    "scenario.scenario_set": "--scenario-set",
    "window.window_start_utc": "--window-start",
    "window.window_end_utc": "--window-end",
    "window.window_tz": "--window-tz",
    "engine_run_root": "--engine-run-root",
    "output_ids": "--output-id",
    "requested_strategy": "--strategy",
    "invoker": "--invoker",
    "notes": "--notes",
    "request_id": "--request-id",
}
"""Path of each field of the request, and the flag that gives it."""
_RULES_OF_MANY: Final = {"scenario": "--scenario-id and --scenario-set", "window": "--window-start and --window-end"}
"""The flags that a rule about several fields is about."""
_NEEDED: Final = (
    "run_equivalence_key", "manifest_fingerprint", "parameter_hash", "seed", "window.window_start_utc",
    "window.window_end_utc",
)  # fmt: skip
#: A decimal uint64 has at most twenty digits; the range itself is a matter of the contract.
_DIGITS: Final = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True, slots=True)
class RequestFlags:
    """The values of the flags, as they were typed; None or empty for a flag that was not given."""

    run_equivalence_key: Annotated[str | None, typer.Option(help="The key: one key is one run, for ever.")] = None
    manifest_fingerprint: Annotated[str | None, typer.Option(help="64 lowercase hex characters.")] = None
    parameter_hash: Annotated[str | None, typer.Option(help="64 lowercase hex characters.")] = None
    seed: Annotated[str | None, typer.Option(metavar="INTEGER", help="0 to 2^64-1.")] = None
    scenario_id: Annotated[str | None, typer.Option(help="The scenario, or else --scenario-set.")] = None
    scenario_set: Annotated[list[str] | None, typer.Option(help="A scenario of a set (repeatable).")] = None
    window_start: Annotated[str | None, typer.Option(metavar="TIME", help="E.g. 2026-01-01T00:00:00Z.")] = None
    window_end: Annotated[str | None, typer.Option(metavar="TIME", help="Likewise; after the start.")] = None
    window_tz: Annotated[str | None, typer.Option(metavar="ZONE", help="Zone of the tz database; UTC if none.")] = None
    engine_run_root: Annotated[str | None, typer.Option(help="Where the engine's run lies.")] = None
    output_id: Annotated[list[str] | None, typer.Option(help="An output (repeatable); the policy's if none.")] = None
    strategy: Annotated[str | None, typer.Option(help="AUTO, FORCE_INVOKE or FORCE_REUSE.")] = None
    invoker: Annotated[str | None, typer.Option(help="Who asks.")] = None
    notes: Annotated[str | None, typer.Option(help="For people.")] = None
    request_id: Annotated[str | None, typer.Option(help="The sender's own id of the request.")] = None

    def given(self) -> list[str]:
        """The flags that were given."""
        return [_FLAGS[path] for path in self._values()]

    def document(self) -> Json:
        """The request document; the time zone is UTC when none is named.

        Raises:
            UsageError: A flag is missing or its value is not valid; names the flag.
        """
        values = {"window.window_tz": "UTC"} | self._values()
        missing = [_FLAGS[path] for path in _NEEDED if path not in values]
        if missing:
            raise UsageError(f"a request needs {', '.join(missing)} too")
        values["seed"] = _seed(str(values["seed"]))
        document: Json = {"scenario": {}, "window": {}}
        for path, value in values.items():
            folder, _, name = path.rpartition(".")
            (document[folder] if folder else document)[name] = value
        _check(document)
        return document

    def _values(self) -> dict[str, Any]:
        """The given values by the path of their field."""
        values = {
            "run_equivalence_key": self.run_equivalence_key,
            "manifest_fingerprint": self.manifest_fingerprint,
            "parameter_hash": self.parameter_hash,
            "seed": self.seed,
            "scenario.scenario_id": self.scenario_id,
            "scenario.scenario_set": self.scenario_set or None,
            "window.window_start_utc": self.window_start,
            "window.window_end_utc": self.window_end,
            "window.window_tz": self.window_tz,
            "engine_run_root": self.engine_run_root,
            "output_ids": self.output_id or None,
            "requested_strategy": self.strategy,
            "invoker": self.invoker,
            "notes": self.notes,
            "request_id": self.request_id,
        }
        return {path: value for path, value in values.items() if value is not None}


def _seed(text: str) -> int:
    if _DIGITS.fullmatch(text) is None:
        raise UsageError("--seed: is not an integer from 0 to 18446744073709551615")
    return int(text)


def _check(document: Json) -> None:
    from pydantic import ValidationError

    from scenario_runner.contracts.documents import RunRequest
    from scenario_runner.contracts.validation import explain_validation

    try:
        request = RunRequest.model_validate(document)
    except ValidationError as error:
        raise UsageError(explain_validation(error, names=_FLAGS | _RULES_OF_MANY)) from error
    if request.window.window_tz not in zones():
        raise UsageError("--window-tz: is not a zone of the tz database, e.g. UTC or Europe/London")
