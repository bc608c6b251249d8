"""The MONAI Label app end to end, in its own environment, on generated radiographs (`make test-label`).

Prints what docs/label.md states: size of the environment, start, memory.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

PYTHON = os.environ.get("LABEL_PYTHON", "")
if not PYTHON:
    pytest.skip("the MONAI Label app is tested by `make test-label`", allow_module_level=True)

from app_site import write_site  # noqa: E402
from dicom_files import found_in, planted_header, write_dicom  # noqa: E402

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
NAME = "Plant_Quirin"  # what a file name may hold


def command(*words: object, **settings: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, *map(str, words)]
    return subprocess.run(
        line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False, **settings
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cohort, the site of its people, one that withholds everything, a key, and studies."""
    folder = tmp_path_factory.mktemp("label")
    write_site(folder, 0.05)
    shutil.copytree(folder / "site", folder / "shut")
    thresholds = json.loads((folder / "shut" / "calibration_model.json").read_text())
    thresholds["training"]["similarity"] = -1.0
    (folder / "shut" / "calibration_model.json").write_text(json.dumps(thresholds))
    (folder / "site.key").write_text("ab" * 32)
    (folder / "site.key").chmod(0o600)
    images = sorted((folder / "cohort" / "images").glob("*.png"))[-24::2]
    for name in ("studies", "shut studies"):
        (folder / name).mkdir()
        for number, file in enumerate(images):
            (folder / name / f"{NAME}{number:02}.png").write_bytes(file.read_bytes())
        (folder / name / "Out.png").symlink_to(images[0])
        tags = {"SOPInstanceUID": "1.2.3.4444.5555.7", "Modality": "DX"}
        write_dicom(folder / name / f"{NAME}_D.dcm", np.asarray(Image.open(images[3])), header=planted_header(), **tags)
    return folder


class Server:
    """A server on a free port of this machine, and how long it took to answer."""

    def __init__(self, studies: Path, log: Path, conf: dict[str, str]):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", log
        pairs = [word for pair in conf.items() for word in ("--conf", *pair)]
        words = ["-m", "monailabel.main", "start_server", "--app", "apps/label", "--studies", str(studies), *pairs]
        start = time.monotonic()
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [PYTHON, *words, "--host", "127.0.0.1", "--port", str(port)],
                cwd=ROOT,
                env=ENVIRONMENT,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        while not self.answers():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() - start < 300, log.read_text()
            time.sleep(0.2)
        self.seconds = time.monotonic() - start

    def answers(self) -> bool:
        try:
            return self.ask("GET", "/info/")[0] == 200
        except URLError:
            return False

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        request = Request(
            self.url + path, body, {name.replace("_", "-"): v for name, v in headers.items()}, method=method
        )
        try:
            with urlopen(request, timeout=300) as answer:
                return answer.status, answer.read()
        except HTTPError as error:
            return error.code, error.read()

    def send(
        self, method: str, path: str, field: str, name: str, content: bytes, params: str = "{}"
    ) -> tuple[int, bytes]:
        head = b"--edge\r\nContent-Disposition: form-data; name="
        body = head + b'"params"\r\n\r\n' + params.encode() + b"\r\n"
        body += head + f'"{field}"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n--edge--\r\n"
        return self.ask(method, path, body, Content_Type="multipart/form-data; boundary=edge")

    def infer(self, task: str, image: str, output: str = "json", /, **params: Any) -> tuple[int, bytes]:
        head = b"--edge\r\nContent-Disposition: form-data; name="
        body = head + b'"params"\r\n\r\n' + json.dumps(params).encode() + b"\r\n--edge--\r\n"
        kind = "multipart/form-data; boundary=edge"
        return self.ask("POST", f"/infer/{task}?image={image}&output={output}", body, Content_Type=kind)

    def peak(self) -> float:
        """MB of memory, at most so far."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024

    def stop(self) -> str:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        return self.log.read_text()


def started(place: Path, site: str, studies: str, conf: dict[str, str]) -> Iterator[Server]:
    settings = {"bundle": "bundles/chest", "site": str(place / site), "cases": str(place / "cohort"), **conf}
    server = Server(place / studies, place / f"{site}.log", settings)
    yield server
    text = server.stop()
    assert NAME not in text and "Traceback" not in text and found_in(text.encode()) == []


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    yield from started(place, "site", "studies", {"key": str(place / "site.key")})


@pytest.fixture(scope="module")
def released(server: Server) -> list[str]:
    """Ids that the gate lets pass."""
    names = [f"{NAME}{number:02}" for number in range(12)]
    found = [name for name in names if server.infer("anonymize", name)[0] == 200]
    assert len(found) >= 6
    return found


def picture(content: bytes, path: Path) -> np.ndarray:
    path.write_bytes(content)
    return np.asarray(Image.open(path))


def test_it_says_what_it_has(server: Server) -> None:
    found = json.loads(server.ask("GET", "/info/")[1])
    assert set(found["models"]) == {"anonymize", "counterfactual", "retrieve"}
    assert found["datastore"]["total"] == 14
    disk = subprocess.run(["du", "-sm", str(Path(PYTHON).parents[1])], capture_output=True, text=True, check=True)
    print(f"\nenvironment {disk.stdout.split()[0]} MB; start {server.seconds:.0f} s; {server.peak():.0f} MB of memory")


def test_a_copy_of_a_picture_is_saved_once_and_given(server: Server, released: list[str], place: Path) -> None:
    name = released[0]
    status, content = server.infer("anonymize", name, "image", save_label=True)
    original = (place / "studies" / f"{name}.png").read_bytes()
    assert status == 200 and content != original
    assert picture(content, place / "copy.png").shape == (64, 64)
    assert (place / "studies/labels/anonymised" / f"{name}.png").read_bytes() == content
    assert server.ask("GET", f"/datastore/label?label={name}&tag=anonymised") == (200, content)
    assert server.infer("anonymize", name, save_label=True)[0] == 409
    assert server.infer("anonymize", name, save_label=True, overwrite=True)[0] == 200
    told = json.loads(server.infer("anonymize", name)[1])
    assert told["released"] and told["gate"] and told["bits"] == round(np.log2(9), 3)


def test_a_copy_of_a_dicom_file_is_one(server: Server, place: Path) -> None:
    import pydicom

    path = place / "studies" / f"{NAME}_D.dcm"
    for status, content in (
        server.infer("anonymize", f"{NAME}_D", "image"),
        server.send("POST", "/infer/anonymize?output=image", "file", f"{NAME}.dcm", path.read_bytes()),
        server.send("POST", "/infer/anonymize?output=image", "file", NAME, path.read_bytes()),
    ):
        assert status == 200, content
        assert found_in(content) == []
        (place / "copy.dcm").write_bytes(content)
        copy = pydicom.dcmread(place / "copy.dcm")
        assert copy.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7" and copy.PatientIdentityRemoved == "YES"
        assert copy.pixel_array.std() > 5


def test_counterfactuals_and_cases_are_given_of_both_kinds(server: Server, released: list[str], place: Path) -> None:
    for image in (released[0], f"{NAME}_D"):
        status, content = server.infer("counterfactual", image, "image", steps=3)
        assert status == 200, content
        assert picture(content, place / "strip.png").shape == (64, 192)
        status, content = server.infer("retrieve", image, k=3)
        found = json.loads(content)
        assert status == 200 and [case["list"] for case in found["cases"]] == ["similar"] * 3 + ["other finding"] * 3
        assert b"png" not in content and b"p000" not in content  # file names and patients of the cohort


def test_the_servers_own_client_understands_it(server: Server, released: list[str], place: Path) -> None:
    """As viewers' plugins ask, with what they send unasked."""
    code = f"""
import json
from monailabel.client.client import MONAILabelClient
client = MONAILabelClient({server.url!r}, {str(place)!r}, "viewer")
image, params = client.infer("anonymize", {released[0]!r}, {{"device": "cpu", "label_tag": "original"}})
print(json.dumps([open(image, "rb").read(8).hex(), params["released"]]))
"""
    ended = subprocess.run([PYTHON, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert json.loads(ended.stdout.splitlines()[-1]) == [b"\x89PNG\r\n\x1a\n".hex(), True], ended.stderr


def test_the_script_asks_for_all_of_it(server: Server, released: list[str], place: Path) -> None:
    def client(*words: object) -> subprocess.CompletedProcess[str]:
        return command("scripts/label_client.py", *words, "--url", server.url)

    image = place / "studies" / f"{released[1]}.png"
    assert client("anonymize", image, "--output", place / "client.png").returncode == 0
    assert (place / "client.png").read_bytes() == server.infer("anonymize", released[1], "image")[1]
    again = client("anonymize", image, "--output", place / "client.png")
    assert again.returncode == 1 and "--overwrite replaces it" in again.stderr
    assert client("counterfactual", released[1], "--steps", 4, "--output", place / "four.png").returncode == 0
    assert np.asarray(Image.open(place / "four.png")).shape == (64, 256)
    assert len(json.loads(client("retrieve", image, "--k", 2).stdout)["cases"]) == 4
    assert "anonymize: " in client("info").stdout
    assert "no such image in the datastore" in client("anonymize", "nobody", "--save").stderr


BUSY = """
import os, sys, threading, time
from pathlib import Path
from monai_anon.integrations.label_server import EXTENSIONS, Studies, quiet_server
quiet_server()
folder, source, failed = Path(sys.argv[1]), Path(sys.argv[2]), []
threading.excepthook = lambda told: failed.append(repr(told.exc_value))
store = Studies(str(folder), extensions=EXTENSIONS, auto_reload=True)

def request(number):
    for one in range(40):
        store.add_image(f"sent{number}_{one}", str(source), {})
        store.save_label(f"sent{number}_{one}", str(source), "final", {})

def copied():
    for one in range(60):
        (folder / f"copied{one}.png").write_bytes(source.read_bytes())
        time.sleep(0.02)

threads = [threading.Thread(target=request, args=(number,)) for number in range(3)] + [threading.Thread(target=copied)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
waited = time.monotonic() + 20
while len(store.list_images()) < 480 and not failed and time.monotonic() < waited:
    time.sleep(0.1)
print(len(store.list_images()), store.status()["label_tags"], failed, flush=True)
os._exit(0)
"""


def test_files_that_arrive_while_it_answers_are_all_seen(tmp_path: Path) -> None:
    """The watcher of the folder and two requests at once (MONAI Label's own datastore loses the watcher)."""
    folder, source = tmp_path / "studies", tmp_path / "source.png"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(source)
    for one in range(300):
        (folder / f"there{one}.png").write_bytes(source.read_bytes())
    words = [PYTHON, "-c", BUSY, str(folder), str(source)]
    ended = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert ended.stdout.splitlines()[-1:] == ["480 {'final': 120} []"], ended.stdout + ended.stderr


UNSEEN = """
import sys
from pathlib import Path
from monai_anon.integrations.label_requests import RequestError
from monai_anon.integrations.label_server import EXTENSIONS, Studies, quiet_server
quiet_server()
folder, source = Path(sys.argv[1]), Path(sys.argv[2])
store = Studies(str(folder), extensions=EXTENSIONS, auto_reload=False)
(folder / "mine.png").write_bytes(b"somebody's")
try:
    store.add_image("mine", str(source), {})
except RequestError as error:
    print(error.status, (folder / "mine.png").read_bytes())
"""


def test_no_upload_replaces_a_file_that_was_not_seen_yet(tmp_path: Path) -> None:
    folder, source = tmp_path / "studies", tmp_path / "source.png"
    folder.mkdir()
    source.write_bytes(b"an upload")
    words = [PYTHON, "-c", UNSEEN, str(folder), str(source)]
    ended = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert ended.stdout.splitlines()[-1:] == ['409 b"somebody\'s"'], ended.stdout + ended.stderr


def test_labels_are_saved_under_other_tags_only(server: Server, released: list[str], place: Path) -> None:
    content, name = (place / "studies" / f"{released[0]}.png").read_bytes(), released[0]
    assert server.send("PUT", f"/datastore/label?image={name}&tag=final", "label", "x.png", content)[0] == 200
    assert server.ask("GET", f"/datastore/label?label={name}&tag=final") == (200, content)
    for tag, status in (("anonymised", 403), ("../../../tag", 400), ("/tmp/tag", 400)):
        assert server.send("PUT", f"/datastore/label?image={name}&tag={tag}", "label", "x.png", content)[0] == status
    assert not (place / "tag").exists() and not Path("/tmp/tag").exists()
    assert server.send("PUT", "/datastore/label?image=nobody&tag=final", "label", "x.png", content)[0] == 404


def test_an_image_is_added_once_under_a_plain_id(server: Server, place: Path) -> None:
    content = next((place / "studies").glob(f"{NAME}*.png")).read_bytes()
    assert server.send("PUT", "/datastore/image?image=new", "file", "x.png", content)[0] == 200
    assert server.send("PUT", "/datastore/image?image=new", "file", "x.png", content)[0] == 409
    for image in ("../out", "/tmp/out", "a%2Fb"):
        assert server.send("PUT", f"/datastore/image?image={image}", "file", "x.png", content)[0] == 400
    status, said = server.send("PUT", "/datastore/image?image=bad", "file", f"{NAME}.png", b"no image")
    assert status == 400 and b"cannot be used" in said and NAME.encode() not in said
    assert not (place / "out.png").exists() and not (place / "studies" / "bad.png").exists()


def test_a_batch_saves_what_passes_and_counts_the_rest(server: Server, released: list[str], place: Path) -> None:
    body = json.dumps({"multi_gpu": False, "device": "cpu"}).encode()
    path = "/batch/infer/anonymize?images=unlabeled"
    assert server.ask("POST", path, body, Content_Type="application/json")[0] == 200
    while (found := json.loads(server.ask("GET", "/batch/infer")[1]))["status"] == "RUNNING":
        time.sleep(0.2)
    assert found["status"] == "DONE" and found["released"] >= len(released) - 1
    assert found.get("refused", 0) == 1 and "failed" not in found  # the link that leads out
    copies = {file.name.partition(".")[0] for file in (place / "studies/labels/anonymised").iterdir()}
    assert set(released) < copies and "Out" not in copies
    assert server.ask("POST", "/batch/infer/retrieve?run_sync=true", b"{}", Content_Type="application/json")[0] == 404


@pytest.mark.parametrize(
    ("task", "image", "params", "status"),
    [
        ("anonymize", "/etc/hostname", {}, 404),
        ("anonymize", "../site.key", {}, 404),
        ("anonymize", "Out", {}, 403),
        ("anonymize", f"{NAME}00", {"image": "/etc/hostname"}, 400),
        ("anonymize", f"{NAME}00", {"label": "/etc/hostname"}, 400),
        ("anonymize", f"{NAME}00", {"label_tag": "../../x", "save_label": True}, 400),
        ("counterfactual", f"{NAME}00", {"steps": 99}, 400),
        ("retrieve", f"{NAME}00", {"k": 0}, 400),
        ("segment", f"{NAME}00", {}, 404),
    ],
)
def test_bad_questions_are_refused_and_the_server_goes_on(
    server: Server, task: str, image: str, params: dict[str, Any], status: int
) -> None:
    found, said = server.infer(task, image, **params)
    assert found == status, said
    assert json.loads(said)["detail"] and b"hostname" not in said and NAME.encode() not in said
    assert server.answers()


def test_corrupt_uploads_are_refused_and_the_server_goes_on(server: Server, place: Path) -> None:
    real = (place / "studies" / f"{NAME}_D.dcm").read_bytes()
    png = next((place / "studies").glob(f"{NAME}*.png")).read_bytes()
    uploads = {"x.png": [b"", b"no image", png[:200], real], "x.dcm": [real[:3000], b"\0" * 128 + b"DICMPLANTQ"]}
    uploads |= {"x.nii.gz": [png], f"{NAME}/../x.exe": [png]}
    for name, contents in uploads.items():
        for content in contents:
            for task in ("anonymize", "counterfactual", "retrieve"):
                status, said = server.send("POST", f"/infer/{task}", "file", name, content)
                assert status == 400 and b"the image cannot be used" in said, said
                assert found_in(said) == [] and NAME.encode() not in said
    assert server.send("POST", "/infer/anonymize", "file", "x.png", png, params="{")[0] == 400
    assert server.answers()


def test_nothing_else_is_handed_out(server: Server, released: list[str]) -> None:
    for method, path in (
        ("GET", "/model/anonymize"),
        ("GET", "/datastore/dataset"),
        ("GET", f"/datastore/image?image={released[0]}"),
        ("GET", "/logs/"),
        ("GET", "/openapi.json"),
        ("POST", "/train/anonymize"),
        ("POST", "/infer/wsi_v2/anonymize"),
        ("DELETE", f"/datastore/image?id={released[0]}"),
        ("PUT", "/session/"),
    ):
        assert server.ask(method, path)[0] == 404
    assert server.ask("GET", "/datastore/?output=all")[0] == 403
    assert server.ask("GET", "/info/", Origin="http://page.example")[0] == 403
    assert server.ask("GET", "/info/", Host="page.example")[0] == 403


def test_what_the_gate_refuses_is_neither_given_nor_saved(place: Path) -> None:
    conf = {"serve_originals": "true", "origins": "http://viewer.example"}
    running = started(place, "shut", "shut studies", conf)
    server = next(running)
    for task in ("anonymize", "counterfactual"):
        status, said = server.infer(task, f"{NAME}00", "image")
        assert (status, json.loads(said)) == (422, {"detail": "withheld: the privacy gate let no image pass"})
    assert server.infer("anonymize", f"{NAME}00", save_label=True)[0] == 422
    path = "/batch/infer/anonymize?run_sync=true"
    found = json.loads(server.ask("POST", path, b'{"max_batch_size": 4}', Content_Type="application/json")[1])
    assert found["status"] == "DONE" and found["withheld"] >= 3 and "released" not in found
    assert not (place / "shut studies/labels/anonymised").exists()
    # a viewer may list and open originals here, since it was said
    assert f"{NAME}00" in json.loads(server.ask("GET", "/datastore/?output=all")[1])["objects"]
    assert server.ask("GET", f"/datastore/image?image={NAME}00")[0] == 200
    assert server.ask("GET", "/datastore/image?image=Out")[0] == 403
    assert server.ask("GET", "/info/", Origin="http://viewer.example")[0] == 200
    assert server.ask("GET", "/model/anonymize")[0] == 404
    next(running, None)


def test_without_a_gate_or_word_of_it_the_server_does_not_start(place: Path) -> None:
    words = ["-m", "monailabel.main", "start_server", "--app", "apps/label", "--studies", str(place / "studies")]
    ended = subprocess.run(
        [PYTHON, *words, "--host", "127.0.0.1", "--port", "0"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode != 0 and "no gate: give --conf site SITE" in said and "Traceback" not in said
