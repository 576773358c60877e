"""Serve bundles over HTTP: OpenAI's /v1/embeddings, the routes of text-embeddings-inference,
Cohere's and SageMaker's.

Every option can be set in the environment too: --payload-limit is KOSINE_PAYLOAD_LIMIT, and API
keys may stand in KOSINE_API_KEY. Without keys only this machine may ask, unless --no-auth says that
everybody may. SIGTERM answers what has come and ends; SIGHUP reads the keys and the bundles anew.
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kosine.commands import options
from kosine.errors import InputError, MissingExtra

__all__ = ["add_arguments", "run"]

LEAVE_OUT = "leave it out for the default"
EXTRA = ("uvicorn", "httptools", "starlette", "msgspec", "orjson", "prometheus_client")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundles",
        metavar="[NAME=]BUNDLE",
        nargs="*",
        help="a bundle's folder; its name without .kosine is the model's, unless NAME is given",
    )
    add = parser.add_argument
    add("--host", "--hostname", default="127.0.0.1", metavar="H", help="where to listen")
    add("--port", type=int, default=8080, metavar="N")
    options.add_engine(parser)
    add("--api-key-file", type=Path, metavar="F", help="keys that are taken, one a line")
    add("--no-auth", action="store_true", help="let everybody ask, from other machines too")
    add("--cors-allow-origin", action="append", metavar="O", help="an origin that may call")
    add("--auto-truncate", action=argparse.BooleanOptionalAction, default=True,
        help="cut over-long texts where a request does not say")  # fmt: skip
    add("--default-prompt-name", metavar="NAME", help="for requests that name none")
    add("--token-input", action="store_true", help="take token ids of the model's vocabulary")
    add("--max-client-batch-size", type=int, default=2_048, metavar="N", help="texts in a request")
    add("--max-batch-tokens", type=int, metavar="N", help="tokens in one run of the engine")
    add("--max-queue-tokens", type=int, default=65_536, metavar="N", help="tokens that may wait")
    add("--max-concurrent-requests", type=int, default=512, metavar="N")
    add("--max-connections", type=int, default=1_024, metavar="N")
    add("--payload-limit", type=int, default=2_000_000, metavar="N", help="bytes of a body")
    add("--timeout", type=float, default=60.0, metavar="S", help="until a request is answered")
    add("--read-timeout", type=float, default=20.0, metavar="S", help="for a request to arrive")
    add("--write-timeout", type=float, default=30.0, metavar="S", help="for an answer to be taken")
    add("--keep-alive", type=float, default=75.0, metavar="S", help="of idle connections")
    add("--drain-delay", type=float, default=0.0, metavar="S",
        help="go on so long after SIGTERM, with readiness at 503")  # fmt: skip
    add("--drain-timeout", type=float, default=25.0, metavar="S", help="to answer what has come")
    add("--log-format", choices=("text", "json"), default="text")
    add("--json-output", action="store_const", const="json", dest="log_format",
        help="the same as --log-format json")  # fmt: skip
    add("--log-requests", action=argparse.BooleanOptionalAction, default=True)
    _take_environment(parser)


def run(args: argparse.Namespace) -> int:
    for name in EXTRA:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise MissingExtra(
                f"kosine serve needs the package {error.name}, which is not installed",
                remedy="pip install 'kosine[serve]'",
            ) from error
    from kosine.serving.http import logs, serve
    from kosine.serving.http.settings import Keys, is_loopback

    settings = _settings(args)
    keys = Keys(args.api_key_file, os.environ.get("KOSINE_API_KEY", "").split())
    if not keys and not args.no_auth and not is_loopback(args.host):
        raise InputError(
            f"--host {args.host} can be reached from other machines, and there is no API key",
            limit="without a key only this machine may ask",
            remedy="pass --api-key-file, set KOSINE_API_KEY, or let everybody in with --no-auth",
        )
    if keys and args.no_auth:
        raise InputError("--no-auth was given and API keys too", remedy="choose one of them")
    server = serve.make_server(serve.make_service(named(args.bundles), settings, keys))
    logs.set_up(args.log_format, args.log_requests)
    server.start()
    return 0


def named(words: Sequence[str]) -> dict[str, Path]:
    """Bundles by the names that requests call them.

    Raises:
        InputError: None is given, or two have one name.
    """
    found: dict[str, Path] = {}
    for word in words:
        name, given, path = word.partition("=")
        if not given:
            path = word
            name = Path(word).absolute().name.removesuffix(".kosine")
        if not name or not path or not name.isprintable():
            raise InputError(
                f"{word!r} names no model",
                limit="BUNDLE or NAME=BUNDLE",
                remedy="name a bundle's folder",
            )
        if name in found:
            raise InputError(f"two models are called {name!r}", remedy="give one NAME=BUNDLE")
        found[name] = Path(path)
    if not found:
        raise InputError("no bundle was given", remedy="kosine serve BUNDLE, or set KOSINE_BUNDLES")
    return found


def _settings(args: argparse.Namespace) -> Any:
    from kosine.serving.http.settings import Settings

    for name, value in vars(args).items():
        if name.startswith(("max_", "payload")) and value is not None and value < 1:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} {value}", limit="at least 1", remedy=LEAVE_OUT)
        if isinstance(value, float) and not 0 <= value < 1e7:
            flag = "--" + name.replace("_", "-")
            raise InputError(
                f"{flag} {value}", limit="0 or more seconds, under 1e7", remedy=LEAVE_OUT
            )
    if not 0 <= args.port < 65_536:
        raise InputError(f"--port {args.port}", limit="0 to 65535", remedy="choose another --port")
    return Settings(
        host=args.host,
        port=args.port,
        engine={
            "backend": args.backend,
            "dtype": args.dtype,
            "device": args.device,
            "threads": args.threads,
        },
        batch_tokens=args.max_batch_tokens,
        queue_tokens=args.max_queue_tokens,
        auto_truncate=args.auto_truncate,
        default_prompt_name=args.default_prompt_name,
        token_input=args.token_input,
        max_items=args.max_client_batch_size,
        max_body=args.payload_limit,
        max_requests=args.max_concurrent_requests,
        max_connections=args.max_connections,
        timeout=args.timeout,
        read_timeout=args.read_timeout,
        write_timeout=args.write_timeout,
        keep_alive=args.keep_alive,
        drain_delay=args.drain_delay,
        drain_timeout=args.drain_timeout,
        cors=tuple(args.cors_allow_origin or ()),
    )


def _take_environment(parser: argparse.ArgumentParser) -> None:
    """KOSINE_NAME is the default of --name, whichever of its names: checked as what is typed is."""
    for action in parser._actions:
        if action.default is argparse.SUPPRESS:
            continue
        for option in action.option_strings or [action.dest]:
            name = "KOSINE_" + option.lstrip("-").replace("-", "_").upper()
            given = os.environ.get(name)
            # Kubernetes writes KOSINE_PORT=tcp://... into every pod beside a Service "kosine".
            if given is not None and not (name == "KOSINE_PORT" and "://" in given):
                default = _default(parser, action, option, name, given)
                parser.set_defaults(**{action.dest: default})


def _default(
    parser: argparse.ArgumentParser, action: argparse.Action, option: str, name: str, given: str
) -> Any:
    """What an option is where the environment gives it."""
    if action.dest == "bundles" or isinstance(action, argparse._AppendAction):
        return given.split()
    if action.nargs == 0:  # on or off
        if given.lower() not in ("0", "1", "true", "false"):
            parser.error(f"{name} is {given!r}: 0, 1, true or false")
        on = given.lower() in ("1", "true")
        if isinstance(action, argparse.BooleanOptionalAction):
            return on != option.startswith("--no-")
        return action.const if on else parser.get_default(action.dest)
    if action.choices is not None and given not in action.choices:
        parser.error(f"{name} is {given!r}: {', '.join(action.choices)}")
    return given  # argparse converts it, as it converts what is typed
