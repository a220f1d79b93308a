"""``policy digest``: the content digest that a policy file should carry."""

from scenario_runner.cli.console import exit_on_error, print_json, print_line
from scenario_runner.cli.outputs.acting import POLICY_DIGEST
from scenario_runner.profiles.policy import policy_digest, read_policy


def run(file: str, *, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json):
        digest = policy_digest(read_policy(file), file)
    if as_json:
        print_json({"content_digest": digest}, POLICY_DIGEST)
    else:
        print_line(digest)
