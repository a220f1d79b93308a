"""Checks of single values of a profile or the environment, before any client sees them.

Each returns the value in its normal form or raises ``ValueError`` with what is needed. No message repeats the value:
it may hold a secret.
"""

import re
from typing import Final

from scenario_runner.posix import WINDOWS

_ENDPOINT: Final = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9._-]*[a-z0-9])?)(?::([0-9]{1,5}))?/?",
                              re.ASCII | re.IGNORECASE)  # fmt: skip
_REGION: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}", re.ASCII | re.IGNORECASE)
_QUEUE: Final = re.compile(r"https?://[^/]+/[a-zA-Z0-9_-]{1,64}/[a-zA-Z0-9_-]{1,80}(\.fifo)?", re.ASCII | re.IGNORECASE)
_STREAM: Final = re.compile(r"[a-zA-Z0-9_.-]{1,128}", re.ASCII)
_RESOURCE: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9:/_.-]{0,511}", re.ASCII)
_DRIVE: Final = re.compile(r"/?([A-Za-z]):(?:[\\/]|$)")
_UNEXPANDED: Final = re.compile(r"~|\$[A-Za-z_{(]|%[A-Za-z_]+%")
_LISTEN: Final = re.compile(r"(?:(?P<host>\[[0-9a-f:.]+\]|[a-z0-9][a-z0-9._-]*)?:)?(?P<port>[0-9]{1,5})",
                            re.ASCII | re.IGNORECASE)  # fmt: skip
_LOOPBACK: Final = "127.0.0.1"
#: Of TCP.
_HIGHEST_PORT: Final = 65535


def one_line(value: str) -> str:
    """A text of printable characters without white space around it."""
    if "\r" in value:
        raise ValueError("holds a carriage return: the file it comes from has CRLF line ends, save it with LF")
    if not value.isprintable():
        raise ValueError(
            r"must be one line without control characters; inside double quotes YAML reads \t and \b as such"
        )
    if value != value.strip():
        raise ValueError("must be one line without surrounding white space")
    return value


def unquoted(value: str) -> str:
    """A text that is not wrapped in quotes."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        raise ValueError("is wrapped in quotes that are part of the value (docker --env-file keeps them): remove them")
    return value


def endpoint(value: str) -> str:
    """``http(s)://host[:port]``; a slash at its end is dropped."""
    unquoted(one_line(value))
    if "://" not in value:
        raise ValueError("has no scheme: write http:// or https:// before the host, as in http://localhost:9000")
    found = _ENDPOINT.fullmatch(value)
    if found is None:
        raise ValueError("must be http://host:port or https://host:port without user, path, query or fragment")
    if found.group(4) and not 0 < int(found.group(4)) <= _HIGHEST_PORT:
        raise ValueError(f"its port must be 1 to {_HIGHEST_PORT}")
    scheme, _, rest = value.removesuffix("/").partition("://")
    return f"{scheme.lower()}://{rest}"


def queue_url(value: str) -> str:
    """The URL of a queue: an endpoint, the account and the queue's name."""
    if _QUEUE.fullmatch(unquoted(one_line(value))) is None:
        raise ValueError("must be the URL of a queue, as in https://sqs.eu-west-1.amazonaws.com/123456789012/name")
    place, _, name = value.rpartition("/")
    server, _, account = place.rpartition("/")
    return f"{endpoint(server)}/{account}/{name}"


def region(value: str) -> str:
    """The name of a region; S3-compatible servers have names of their own."""
    if _REGION.fullmatch(unquoted(one_line(value))) is None:
        raise ValueError("must be the name of a region, as in eu-west-1")
    return value


def stream_name(value: str) -> str:
    """The name of a Kinesis stream, a consumer application or a worker."""
    if _STREAM.fullmatch(unquoted(one_line(value))) is None:
        raise ValueError("must be letters, digits, '.', '_' and '-', at most 128 of them")
    return value


def resource(value: str) -> str:
    """The name, id or ARN of something in AWS."""
    if _RESOURCE.fullmatch(unquoted(one_line(value))) is None:
        raise ValueError("must be a name, an id or an ARN: letters, digits, ':', '/', '.', '_' and '-'")
    return value


def location(value: str) -> str:
    """A path of this machine, a ``file://`` URI or another URI."""
    path = unquoted(one_line(value)).removeprefix("file://")
    if "://" in path:
        return value
    if _UNEXPANDED.match(path):
        raise ValueError("would be taken literally: only ${NAME} is expanded; write the path out, or ${HOME}/...")
    if not WINDOWS:
        _not_of_windows(path)
    return value


def _not_of_windows(path: str) -> None:
    drive = _DRIVE.match(path)
    if drive is None and "\\" not in path:
        return
    rest = path[drive.end() :] if drive else path
    written = f"/mnt/{drive.group(1).lower()}/" if drive else ""
    written += rest.replace("\\", "/").strip("/" if drive else "")
    raise ValueError(f"is a Windows path; on Linux and in WSL write {written}")


def listen_address(value: str) -> tuple[str, int]:
    """Host and port of ``host:port``, ``[address]:port`` or a port alone, which is one of the loopback address."""
    found = _LISTEN.fullmatch(unquoted(one_line(value)))
    if found is None or int(found["port"]) > _HIGHEST_PORT:
        raise ValueError("must be host:port, [IPv6 address]:port, or a port, which then is one of 127.0.0.1")
    return (found["host"] or _LOOPBACK).strip("[]"), int(found["port"])


def listen(value: str) -> str:
    """An address to listen on, as ``host:port``."""
    host, port = listen_address(value)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
