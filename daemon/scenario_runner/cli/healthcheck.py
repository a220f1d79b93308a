"""``healthcheck``: asks a daemon whether it is alive or ready, for supervisors whose image has no HTTP client.

Only the standard library is used, and the profile is read only when no URL is given: a container is asked every few
seconds.
"""

import http.client
import json
from typing import Any, Final
from urllib.parse import urlsplit

import typer

from scenario_runner.cli.console import Exit, exit_on_error, print_json, print_line
from scenario_runner.cli.outputs.looking import HEALTHCHECK
from scenario_runner.contracts.errors import UsageError

#: An answer is made from what is known already; only an overloaded host needs seconds for it.
_SECONDS: Final = 5.0
#: Of an answer; it names a few checks.
_MOST_BYTES: Final = 1 << 20
NO_ANSWER: Final[dict[str, Any]] = {"status": "no answer"}
"""What is said of an address where no daemon answers."""
#: What an address that stands for every interface is asked at.
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound here


def run(url: str | None, wiring_path: str | None, *, ready: bool, as_json: bool) -> None:
    """The command."""
    with exit_on_error(as_json=as_json, logs=False):
        host, port = _address(url, wiring_path)
    passed, answer = ask(host, port, "/readyz" if ready else "/healthz")
    if as_json:
        print_json(answer, HEALTHCHECK)
    else:
        print_line(in_words(answer))
    raise typer.Exit(Exit.DONE if passed else Exit.NEGATIVE)


def _address(url: str | None, wiring_path: str | None) -> tuple[str, int]:
    """Host and port to ask.

    Raises:
        UsageError: neither is given, or the URL is none of a listener, or the profile has no listener.
    """
    if url is not None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError(f"--url: {error}") from error
        if parts.scheme != "http" or not host or not port or parts.path not in ("", "/"):
            raise UsageError("--url must be http://host:port")
        return host, port
    if wiring_path is None:
        raise UsageError("give --url or --wiring")
    from scenario_runner.profiles.values import listen_address  # slow to import with the profile
    from scenario_runner.profiles.wiring import load_wiring

    wiring = load_wiring(wiring_path)
    if wiring.health_listen is None:
        raise UsageError(f"profile {wiring.profile_id} has no health_listen, so nobody can be asked")
    host, port = listen_address(wiring.health_listen)
    if not port:
        raise UsageError("health_listen has port 0: which one was taken stands in the daemon's log; give --url")
    return asked_at(host), port


def asked_at(host: str) -> str:
    """Where a listener on an address is asked from its own host."""
    return _EVERYWHERE.get(host, host)


def ask(host: str, port: int, path: str) -> tuple[bool, dict[str, Any]]:
    """Ask a listener.

    Returns:
        Whether it says yes, and its answer; one that does not answer says no.
    """
    connection = http.client.HTTPConnection(host, port, timeout=_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        document = json.loads(response.read(_MOST_BYTES))
        if _is_answer(document):
            return response.status == http.client.OK, document
        detail = "the answer is none of Scenario Runner's"
    except (OSError, http.client.HTTPException, ValueError) as error:
        detail = f"{type(error).__name__}: {error}"
    finally:
        connection.close()
    return False, {**NO_ANSWER, "detail": detail}


def _is_answer(document: Any) -> bool:  # noqa: ANN401 - whatever JSON can say
    """Whether this is an answer of a listener; what else listens there is not known."""
    return (
        isinstance(document, dict)
        and isinstance(document.get("status"), str)
        and isinstance(document.get("checks"), dict)
        and all(isinstance(check, dict) for check in document["checks"].values())
    )


def in_words(answer: dict[str, Any]) -> str:
    """An answer and what is wrong, for a person."""
    found = [answer["detail"]] if "detail" in answer else []
    for name, check in answer.get("checks", {}).items():
        if not check.get("ok"):
            seconds = check.get("seconds_since_progress")
            silent = f"no progress for {seconds} s" if seconds is not None else ""
            found.append(": ".join(filter(None, (name, check.get("detail"), silent))))
    return f"{answer['status']}: {'; '.join(found)}" if found else str(answer["status"])
