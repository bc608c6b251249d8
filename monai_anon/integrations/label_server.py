"""The MONAI Label app: that server's datastore, tasks and addresses around `label.Tasks`.

Imports MONAI Label, which has an environment of its own (`apps/label`). Where a request brings a file, the routes here
stand in for the server's own: those take the ending of a file's name from the client, let `params` name other files,
and leave what was uploaded in the temporary folder when they fail.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from threading import RLock
from typing import Annotated, Any, Optional

from fastapi import File, Form, Response, UploadFile
from fastapi.routing import APIRoute
from monailabel.config import settings as server_settings
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from requests_toolbelt import MultipartEncoder

from monai_anon.integrations import label_requests as requests
from monai_anon.integrations.label import TASKS, Answer, Settings, Tasks
from monai_anon.integrations.label_batch import Batch
from monai_anon.integrations.label_guard import Guard
from monai_anon.integrations.label_requests import TAG, RequestError
from monai_anon.readers import SUFFIXES

logger = logging.getLogger("monai_anon")

EXTENSIONS = [f"*{suffix}" for suffix in sorted(SUFFIXES, key=len, reverse=True)]


def quiet_server() -> None:
    """Silence MONAI Label's own logs, which quote file names, paths and whole requests."""
    for name in ("monailabel", "__main__", "timeloop", "watchdog"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    logging.getLogger("uvicorn.error").addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    """Leaves the last line of a traceback, and nothing of one that belongs to a request."""
    if record.exc_info:
        record.exc_info, record.exc_text = None, None
    lines = record.getMessage().strip().splitlines()
    if lines and lines[0].startswith("Traceback"):
        record.msg, record.args = lines[-1], ()
    return True


def _one_at_a_time(store: type[LocalDatastore]) -> type[LocalDatastore]:
    """Let one thread at a time into a datastore: its watcher or a request.

    MONAI Label's own has no lock between them: its watcher ends with an error when an image is added while it looks
    at the folder, and sees no file from then on.
    """

    def alone(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def call(self: Any, *args: Any, **settings: Any) -> Any:
            with self.lock:
                return method(self, *args, **settings)

        return call

    watcher = ("_on_any_event", "_on_modify_event")
    for name in dir(store):
        method = getattr(store, name)
        if callable(method) and (name in watcher or not name.startswith("_")):
            setattr(store, name, alone(method))
    return store


@_one_at_a_time
class Studies(LocalDatastore):
    """A folder of images that takes no id, tag or link that leads out of it, and replaces no image."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        self.lock = RLock()
        super().__init__(*args, **settings)

    def get_image_uri(self, image_id: str) -> str:
        """The path of an image.

        Raises:
            RequestError: there is none with this id, or a link to somewhere else.
        """
        found = Path(super().get_image_uri(requests.known_id(image_id, self.list_images())))
        if not found.is_relative_to(Path(self._datastore_path).resolve()):
            raise RequestError("this image is a link that leads out of the datastore, which is not followed", 403)
        return str(found)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        self.refresh()  # what lies there and was not seen yet is there, too
        requests.new_id(image_id, self.list_images())
        return str(super().add_image(image_id, image_filename, image_info))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        requests.open_tag(label_tag)
        return self._save(image_id, label_filename, label_tag, label_info)

    def save_copy(self, image_id: str, answer: Answer, task: str) -> None:
        """Save a copy that passed the gate under `TAG`."""
        assert answer.content is not None
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"copy{answer.suffix}"
            file.write_bytes(answer.content)
            self._save(image_id, str(file), TAG, {"model": task, "params": answer.params})

    def has_copy(self, image_id: str) -> bool:
        """Whether an image has a copy under `TAG`."""
        return TAG in self.get_labels_by_image_id(image_id)

    def _save(self, image_id: str, file: str, tag: str, info: dict[str, Any]) -> str:
        requests.known_id(image_id, self.list_images())
        return str(super().save_label(image_id, file, tag, info))


class Task(InferTask):
    """One of `TASKS`, as `/info/` tells of it."""

    def __init__(self, app: LabelApp, name: str, there: bool) -> None:
        super().__init__(InferType.OTHERS, None, 2, TASKS[name])
        self._app, self._name, self._there = app, name, there

    def is_valid(self) -> bool:
        return self._there

    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        raise RequestError("tasks are asked for at /infer/TASK", 404)


class LabelApp(MONAILabelApp):
    """The app: `anonymize`, `counterfactual` and `retrieve` behind `label_guard.Guard`."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        quiet_server()
        self.settings = Settings.read({name: value for name, value in conf.items() if name != "server_mode"})
        if "://" in studies:
            raise ValueError("--studies must be a folder of this machine; this app asks no other server for images")
        self.tasks = Tasks.load(self.settings)
        self.batch = Batch()
        super().__init__(app_dir, studies, conf, "monai-anon", "Anonymised images, counterfactuals and similar cases")

    def init_datastore(self) -> Studies:
        return Studies(
            self.studies,
            extensions=EXTENSIONS,
            auto_reload=server_settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=server_settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, InferTask]:
        return {name: Task(self, name, name != "retrieve" or self.tasks.archive is not None) for name in TASKS}

    def _load_sessions(self, load: bool = False) -> None:
        """None: a session's id may name a folder."""
        return None

    def on_init_complete(self) -> None:
        """Put the door in front of the server, before its first request."""
        from monailabel.app import app as server

        for route in self._routes():
            server.router.routes.insert(0, route)
        server.middleware_stack = None  # made again, with the door, at the first request
        origins = [origin.strip() for origin in self.settings.origins.split(",") if origin.strip()]
        server.add_middleware(Guard, originals=self.settings.serve_originals, origins=origins)
        super().on_init_complete()
        gate = "with the privacy gate" if self.tasks.passes.gate else "WITHOUT A GATE: nothing is saved as anonymised"
        logger.info("ready, %s", gate)

    # ---- What is asked ----

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """For MONAI Label's own callers: an image of the datastore, by its id."""
        image, params = str(request.get("image", "")), {k: v for k, v in request.items() if k not in ("image", "model")}
        answer = self.ask(str(request.get("model")), image, None, params)
        return {"label": None, "tag": TAG, "file": None, "params": answer.params}

    def ask(self, task: str, image: str, path: Path | None, params: str | Mapping[str, Any]) -> Answer:
        """The answer of a task to an image of the datastore (by its id) or to an uploaded file.

        Raises:
            RequestError: as `Tasks.answer`, `label_requests.taken`; an id of no image; a copy that is there already.
        """
        if task not in TASKS:
            raise RequestError(f"no such task; there are {', '.join(TASKS)}", 404)
        asked = requests.taken(task, params)
        store, save = self.datastore(), requests.truth(asked, "save_label")
        overwrite = requests.truth(asked, "overwrite")
        if path is None:
            path = Path(store.get_image_uri(image))
        elif save:
            raise RequestError("an uploaded image has no place to be saved at; add it to the datastore first")
        if save and not self.tasks.passes.gate:
            raise RequestError(f"without a gate nothing is saved as {TAG!r}", 403)
        if save and store.has_copy(image) and not overwrite:
            raise RequestError('this image has a copy already; "overwrite": true replaces it', 409)
        answer = self.tasks.answer(task, path, asked)
        if save:
            store.save_copy(image, answer, task)
        return answer

    def batch_infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Anonymise and save images of the datastore, one after the other; returns counts."""
        if request.get("model") != "anonymize":
            raise RequestError("batch inference is there for anonymize only", 404)
        asked = requests.taken(requests.BATCH, {k: v for k, v in request.items() if k not in ("model", "images")})
        most, overwrite = requests.whole(asked, "max_batch_size", 0, 0, 10**9), requests.truth(asked, "overwrite")
        store, kind = self.datastore(), request.get("images") or "all"
        if kind not in ("all", "labeled", "unlabeled"):
            raise RequestError("images must be all, labeled or unlabeled")
        wanted = {"all": lambda _: True, "labeled": store.has_copy, "unlabeled": lambda one: not store.has_copy(one)}
        images = sorted(filter(wanted[kind], store.list_images()))[: most or None]
        params = {"save_label": True, "overwrite": overwrite}
        return self.batch.run(images, lambda image: self.ask("anonymize", image, None, params))

    # ---- Addresses ----

    def _routes(self) -> list[APIRoute]:
        def infer(
            task: str,
            image: str = "",
            output: str = "all",
            params: Annotated[str, Form()] = "{}",
            file: Annotated[Optional[UploadFile], File()] = None,  # noqa: UP045 - read at run time
        ) -> Response:
            if output not in ("all", "image", "json"):
                raise RequestError("output must be all, image or json")
            if (file is None) == (not image):
                raise RequestError("give either image, an id of the datastore, or an uploaded file")
            if file is None:
                return _response(self.ask(task, image, None, params), task, output)
            with _received(file) as path:
                return _response(self.ask(task, "", path, params), task, output)

        def add_image(file: Annotated[UploadFile, File()], image: str = "") -> dict[str, str]:
            suffix = requests.suffix_of(file.filename)
            name = requests.new_id(
                image or Path(file.filename or "").name.removesuffix(suffix), self.datastore().list_images()
            )
            with _received(file, suffix or ".dcm") as path:
                self.tasks.read(path)
                return {"image": self.datastore().add_image(name, str(path), {})}

        def save_label(image: str, label: Annotated[UploadFile, File()], tag: str = "final") -> dict[str, str]:
            suffix = requests.suffix_of(label.filename)
            if not suffix:
                raise RequestError(f"a label's name must end in one of {', '.join(SUFFIXES)}")
            with _received(label, suffix) as path:
                return {"image": image, "label": self.datastore().save_label(image, str(path), tag or "final", {})}

        def run_batch(
            task: str,
            images: str = "all",
            run_sync: bool = False,
            params: Optional[dict[str, Any]] = None,  # noqa: UP045 - read at run time
        ) -> dict[str, Any]:
            request = {**(params or {}), "model": task, "images": images}
            return self.batch.start(lambda: self.batch_infer(request), run_sync)

        return [
            APIRoute("/infer/{task}", infer, methods=["POST"], response_class=Response),
            APIRoute("/datastore/image", add_image, methods=["PUT"]),
            APIRoute("/datastore/", add_image, methods=["PUT"]),
            APIRoute("/datastore/label", save_label, methods=["PUT"]),
            APIRoute("/batch/infer/{task}", run_batch, methods=["POST"]),
            APIRoute("/batch/infer", self.batch.status, methods=["GET"]),
            APIRoute("/batch/infer", self.batch.stop, methods=["DELETE"]),
        ]


@contextmanager
def _received(file: UploadFile, suffix: str | None = None) -> Iterator[Path]:
    """An upload as a file in a folder that is gone afterwards, under a name of ours."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"upload{requests.suffix_of(file.filename) if suffix is None else suffix}"
        with path.open("wb") as received:
            shutil.copyfileobj(file.file, received)
        yield path


def _response(answer: Answer, task: str, output: str) -> Response:
    if output == "json" or (answer.content is None and output == "all"):
        return Response(json.dumps(answer.params), media_type="application/json")
    if answer.content is None:
        raise RequestError(f"{task} gives no image; ask for output=json")
    name = f"{task}{answer.suffix}"
    kind = {".png": "image/png", ".dcm": "application/dicom"}.get(answer.suffix, "application/octet-stream")
    if output == "image":
        return Response(
            answer.content, media_type=kind, headers={"Content-Disposition": f'attachment; filename="{name}"'}
        )
    parts = MultipartEncoder(
        {"params": (None, json.dumps(answer.params), "application/json"), "image": (name, answer.content, kind)}
    )
    return Response(parts.to_string(), media_type=parts.content_type)
