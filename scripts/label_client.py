"""Ask a MONAI Label server that runs apps/label: anonymised copies, counterfactuals, similar cases (docs/label.md).

    python scripts/label_client.py anonymize image.png --output copy.png
    python scripts/label_client.py anonymize 0001 --save
    python scripts/label_client.py counterfactual image.dcm --steps 5 --output strip.png
    python scripts/label_client.py retrieve image.png --k 3
    python scripts/label_client.py batch

IMAGE is a file, which is uploaded, or else the id of an image in the server's folder.
"""

from __future__ import annotations

import json
import secrets
import time
from email.message import Message
from pathlib import Path
from typing import Annotated, Any, Optional
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

import typer

from monai_anon.whole_files import write_bytes

HERE = ("localhost", "127.0.0.1", "::1")
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

ImageArgument = Annotated[str, typer.Argument(metavar="IMAGE", help="A file, or the id of an image on the server.")]
UrlOption = Annotated[str, typer.Option("--url", help="Of the server.")]
OutputOption = Annotated[Optional[Path], typer.Option(help="Where the image goes.")]  # noqa: UP045
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
URL = "http://127.0.0.1:8000"


class Refused(Exception):
    """What the server, or this script, refuses, in words."""


def main() -> None:
    """Run a command; a refusal is one line and the exit code 1."""
    try:
        app()
    except Refused as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(1) from error


@app.command()
def info(url: UrlOption = URL) -> None:
    """Say which tasks the server has, and how many images."""
    found, _ = ask(url, "GET", "/info/")
    tasks = [f"{name}: {task['description']}" for name, task in found["models"].items()]
    typer.echo("\n".join([*tasks, f"images: {json.dumps(found['datastore'])}"]))


@app.command()
def anonymize(
    image: ImageArgument,
    output: OutputOption = None,
    save: Annotated[bool, typer.Option("--save", help="Save it on the server, under the tag anonymised.")] = False,
    overwrite: OverwriteOption = False,
    url: UrlOption = URL,
) -> None:
    """A copy of an image with a synthetic person, if the server's privacy gate lets it pass."""
    if output is None and not save:
        raise Refused("say where the copy goes: --output FILE, --save, or both")
    params = {"save_label": True, "overwrite": overwrite} if save else {}
    _infer(url, "anonymize", image, params, output, overwrite)


@app.command()
def counterfactual(
    image: ImageArgument,
    output: Annotated[Path, typer.Option(help="Where the picture goes.")],
    to: Annotated[Optional[int], typer.Option(help="Number of the other finding, from 0.")] = None,  # noqa: UP045
    steps: Annotated[int, typer.Option(help="Images from the one finding to the other, 2 to 16.")] = 2,
    overwrite: OverwriteOption = False,
    url: UrlOption = URL,
) -> None:
    """The image's finding drawn for a synthetic person, and the same with another finding, side by side."""
    params = {"steps": steps} | ({} if to is None else {"to": to})
    _infer(url, "counterfactual", image, params, output, overwrite)


@app.command()
def retrieve(
    image: ImageArgument,
    k: Annotated[int, typer.Option("--k", help="Cases of each list.")] = 5,
    images: Annotated[bool, typer.Option("--images", help="With each case's anonymised image, PNG in base64.")] = False,
    output: OutputOption = None,
    overwrite: OverwriteOption = False,
    url: UrlOption = URL,
) -> None:
    """Cases of the server's archive with the same finding, and with another one, as JSON."""
    found, _ = ask(url, "POST", "/infer/retrieve", *_asked(image, {"k": k, "images": images}))
    text = json.dumps(found, indent=2)
    if output is None:
        typer.echo(text)
    else:
        _write(output, text.encode() + b"\n", overwrite)


@app.command()
def batch(
    images: Annotated[str, typer.Option(help="all, unlabeled (without a copy) or labeled.")] = "unlabeled",
    overwrite: OverwriteOption = False,
    url: UrlOption = URL,
) -> None:
    """Anonymise and save the images of the server's folder; says how far it is until it has ended."""
    body = json.dumps({"overwrite": overwrite, "device": "cpu", "multi_gpu": False}).encode()
    ask(url, "POST", "/batch/infer/anonymize", {"images": images}, body, "application/json")
    while (found := ask(url, "GET", "/batch/infer")[0])["status"] == "RUNNING":
        typer.echo(json.dumps(found), err=True)
        time.sleep(1)
    typer.echo(json.dumps(found))
    if found["status"] != "DONE":
        raise Refused("the batch did not end as it should")


def ask(
    url: str,
    method: str,
    path: str,
    query: dict[str, str] | None = None,
    body: bytes | None = None,
    kind: str | None = None,
) -> tuple[dict[str, Any], bytes | None]:
    """A server's answer: its JSON, and the image where it gives one.

    Raises:
        Refused: by the server, or it cannot be reached; an address elsewhere that is not encrypted.
    """
    parts = urlsplit(url)
    if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in HERE):
        raise Refused(f"--url is {url}; images leave this machine over https only")
    target = url.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
    request = Request(target, data=body, method=method, headers={"Content-Type": kind} if kind else {})
    try:
        with urlopen(request, timeout=600) as answer:
            return _parsed(answer.headers, answer.read())
    except HTTPError as error:
        raise Refused(_detail(error.read()) or f"the server answered {error.code}") from error
    except (URLError, OSError) as error:
        raise Refused(f"no server answers at {url} (docs/label.md says how to start one)") from error


def _infer(url: str, task: str, image: str, params: dict[str, Any], output: Path | None, overwrite: bool) -> None:
    if output is not None and output.exists() and not overwrite:
        raise Refused(f"{output} is there; --overwrite replaces it")
    found, content = ask(url, "POST", f"/infer/{task}", *_asked(image, params))
    if output is not None and content is not None:
        _write(output, content, overwrite)
    typer.echo(json.dumps(found))


def _asked(image: str, params: dict[str, Any]) -> tuple[dict[str, str], bytes, str]:
    """Query, body and content type of a question about an image."""
    boundary, path = secrets.token_hex(16), Path(image)
    fields = [(b'name="params"', json.dumps(params).encode())]
    query = {}
    if path.is_file():
        name = "upload" + "".join(path.suffixes[-2:] if path.name.lower().endswith(".nii.gz") else path.suffixes[-1:])
        fields.append((f'name="file"; filename="{name}"'.encode(), path.read_bytes()))  # the name stays here
    elif "/" in image:
        raise Refused(f"{image}: no such file")
    else:
        query["image"] = image
    start = f"--{boundary}\r\nContent-Disposition: form-data; ".encode()
    parts = [start + name + b"\r\n\r\n" + content + b"\r\n" for name, content in fields]
    return query, b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def _parsed(headers: Message, content: bytes) -> tuple[dict[str, Any], bytes | None]:
    """JSON, or parts of which one is JSON and another an image."""
    kind = headers.get("Content-Type", "")
    if not kind.startswith("multipart/"):
        return json.loads(content), None
    found: dict[bytes, bytes] = {}
    for part in content.split(b"--" + str(headers.get_param("boundary")).encode())[1:-1]:
        head, _, payload = part.partition(b"\r\n\r\n")
        found[b"params" if b'name="params"' in head else b"image"] = payload.removesuffix(b"\r\n")
    return json.loads(found[b"params"]), found.get(b"image")


def _detail(content: bytes) -> str:
    try:
        return str(json.loads(content)["detail"])
    except (ValueError, KeyError, TypeError):
        return ""


def _write(path: Path, content: bytes, overwrite: bool) -> None:
    try:
        write_bytes(path, content, overwrite)
    except FileExistsError as error:
        raise Refused(f"{path} is there; --overwrite replaces it") from error


if __name__ == "__main__":
    main()
