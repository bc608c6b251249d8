"""A door in front of MONAI Label's server: who may ask, which addresses there are, and what an error says.

That server asks nobody who he is, lets the scripts of every web page read its answers (CORS `*`), hands out weights,
logs, originals and the whole folder as an archive, takes new weights, passes requests on to other servers, and binds to
all interfaces unless told otherwise. Here an address that is not listed is not there; who comes from another machine,
by another name than this machine's own (as a page does that rebinds its name), or from a web page is refused; and an
error that nobody foresaw is answered and logged without what it says, which may be a path or a header.

Plain ASGI, so that it needs none of the server's libraries.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from monai_anon.integrations.label_requests import RequestError

logger = logging.getLogger("monai_anon")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_HERE = {"localhost", "127.0.0.1", "[::1]"}


class Address(NamedTuple):
    """What may be asked for: a method, a pattern of the whole path, and the names its query may have."""

    method: str
    path: str
    query: tuple[str, ...] = ()


ADDRESSES = (
    Address("GET", r"/info/"),
    Address("POST", r"/infer/[a-z]+", ("image", "output")),
    Address("POST", r"/batch/infer/[a-z]+", ("images", "run_sync")),
    Address("GET", r"/batch/infer", ("all", "check_if_running")),
    Address("DELETE", r"/batch/infer"),
    Address("GET", r"/datastore/", ("output",)),
    Address("PUT", r"/datastore/(image)?", ("image",)),
    Address("PUT", r"/datastore/label", ("image", "tag")),
    Address("GET", r"/datastore/label", ("label", "tag")),
)
ORIGINALS = (
    Address("GET", r"/datastore/image", ("image",)),
    Address("HEAD", r"/datastore/image", ("image", "check_sum")),
    Address("GET", r"/datastore/image/info", ("image",)),
    Address("POST", r"/activelearning/[a-z]+"),
)
"""What a viewer needs beside them: they name originals or hand them out."""
_LISTING = ("all", "train")


class Guard:
    """Lets through what is listed, and answers for what fails behind it.

    Args:
        addresses: that there are; `originals` whether ORIGINALS are, too, and images may be listed.
        origins: of web pages that may ask, "http://viewer.example:3000".
    """

    def __init__(
        self,
        app: App,
        addresses: Iterable[Address] = ADDRESSES,
        originals: bool = False,
        origins: Iterable[str] = (),
    ) -> None:
        self._app, self._originals = app, originals
        listed = [*addresses, *(ORIGINALS if originals else ())]
        self._addresses = [(one.method, re.compile(one.path), set(one.query)) for one in listed]
        self._origins = {origin.rstrip("/") for origin in origins}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"cache-control", b"no-store")]
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, receive, watched)
        except RequestError as error:
            await _say(send, error.status, str(error))
        except Exception as error:  # whatever it is: what it says may hold a path or a header
            logger.error("a request ended with %s", type(error).__name__)
            if started:
                return
            await _say(send, 500, "the request could not be answered; the server goes on")

    def _admit(self, scope: Message) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        client = scope.get("client")
        if client is not None and not _is_here(client[0]):
            raise RequestError(
                "this server answers its own machine only; a proxy that asks who it is may stand there", 403
            )
        if _host(headers.get("host", "")) not in _HERE:
            raise RequestError("the Host must be localhost, 127.0.0.1 or [::1]", 403)
        origin = headers.get("origin")
        if (origin is not None or headers.get("sec-fetch-site") in ("cross-site", "same-site")) and (
            origin is None or origin.rstrip("/") not in self._origins
        ):
            raise RequestError("web pages may not ask; --conf origins names those that may", 403)
        if scope["method"] == "OPTIONS" and origin is not None:
            return
        asked = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        for method, path, query in self._addresses:
            if method == scope["method"] and path.fullmatch(scope["path"]):
                return self._admit_query(asked, query)
        raise RequestError("there is no such address here; docs/label.md lists them", 404)

    def _admit_query(self, asked: list[tuple[str, str]], known: set[str]) -> None:
        names = [name for name, value in asked if value]
        if set(names) - known or len(names) > len(set(names)):
            raise RequestError(f"the query may have {', '.join(sorted(known)) or 'nothing'}, each once")
        listing = dict(asked).get("output") in _LISTING and "image" not in known
        if listing and not self._originals:
            raise RequestError("images are listed with --conf serve_originals true only", 403)


def _is_here(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _host(value: str) -> str:
    """A Host header without its port."""
    return re.sub(r":\d+$", "", value.lower())


async def _say(send: Send, status: int, detail: str) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
