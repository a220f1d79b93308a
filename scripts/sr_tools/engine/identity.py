"""The identity of an engine run, and the paths that it gives to templates."""

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from sr_tools.engine.errors import MakeRunError
from sr_tools.engine.pack import TOKEN, TOKENS

DERIVED: Final = "derived"
"""In the place of an engine run id: one that the engine makes from its own seed and the run key."""


@dataclass(frozen=True)
class Identity:
    """The values that a run's path templates are filled with.

    Attributes:
        engine_run_id: The engine's own id of the run; empty when it is the one that a request gives.
        invoked_for: The run id of an invocation, which the receipt and the paths then carry; empty when the engine was
            not invoked for a run. Its own id stands beside it.
    """

    run_key: str
    seed: int
    manifest_fingerprint: str
    parameter_hash: str
    scenario_id: str
    engine_run_id: str = ""
    invoked_for: str = ""

    @property
    def run_id(self) -> str:
        """That of the invocation, or the first 32 hex of sha256 over ``sr_run|`` and the run equivalence key."""
        return self.invoked_for or sha256_hex(f"sr_run|{self.run_key}".encode())[:32]

    @property
    def folder_name(self) -> str:
        """Name of the run root: the id under which the engine knows the run."""
        return self.engine_run_id or self.run_id

    def document(self) -> dict[str, object]:
        """The identity as the engine knows it, as the fields of a document."""
        key = {} if self.invoked_for else {"run_equivalence_key": self.run_key}
        own = {"engine_run_id": self.engine_run_id} if self.invoked_for and self.engine_run_id else {}
        return {
            "run_id": self.invoked_for or self.folder_name,
            **key,
            "manifest_fingerprint": self.manifest_fingerprint,
            "parameter_hash": self.parameter_hash,
            "seed": self.seed,
            "scenario_id": self.scenario_id,
            **own,
        }

    def fill(self, template: str) -> str:
        """The relative path that a template names, each token replaced once.

        Raises:
            MakeRunError: A token has no value, or the path would leave the run root.
        """
        values = {name: str(value) for name, value in self.document().items() if name in TOKENS}
        try:
            path = TOKEN.sub(lambda match: values[match[1]], template)
        except KeyError as error:
            raise MakeRunError(f"{template}: a run request has no value for {{{error.args[0]}}}") from error
        if path.startswith("/") or ".." in path.split("/") or "://" in path:
            raise MakeRunError(f"{template}: not a path below the engine run root")
        return path

    def check(self) -> None:
        """Refuse an identity that no run request could carry.

        Raises:
            MakeRunError: A field does not have its form.
        """
        for name in ("manifest_fingerprint", "parameter_hash"):
            if not re.fullmatch("[0-9a-f]{64}", getattr(self, name)):
                raise MakeRunError(f"{name} must be exactly 64 lowercase hex characters")
        if not re.fullmatch("[0-9a-f]{32}|", self.engine_run_id):
            raise MakeRunError(f"engine_run_id must be exactly 32 lowercase hex characters, or {DERIVED!r}")
        if not re.fullmatch("[0-9a-f]{32}|", self.invoked_for):
            raise MakeRunError("run_id must be exactly 32 lowercase hex characters")
        if not 0 <= self.seed < 2**64:
            raise MakeRunError("seed must be an integer from 0 to 2^64-1")
        if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_.:-]*", self.scenario_id):
            raise MakeRunError("scenario_id must be letters, digits, `_`, `-`, `.` and `:`")
        if not self.run_key:
            raise MakeRunError("the run key must not be empty")


def sha256_hex(data: bytes) -> str:
    """Lowercase hex sha256 of some bytes."""
    return hashlib.sha256(data).hexdigest()
