import asyncio
import json
import logging
import time

import pytest

from monai_anon.integrations import label_requests as requests
from monai_anon.integrations.label_batch import Batch
from monai_anon.integrations.label_guard import Guard
from monai_anon.integrations.label_requests import RequestError

HOST = (b"host", b"127.0.0.1:8000")


async def plain(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"reached"})


def ask(guard, method, path, query="", headers=(HOST,), client="127.0.0.1"):
    """Status and what is said."""
    sent = []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": list(headers),
        "client": (client, 4321),
    }

    async def send(message):
        sent.append(message)

    asyncio.run(guard(scope, None, send))
    body = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], body.decode()


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("GET", "/info/", ""),
        ("POST", "/infer/anonymize", "image=one&output=image"),
        ("POST", "/infer/anonymize", "image="),
        ("PUT", "/datastore/image", "image=one"),
        ("PUT", "/datastore/label", "image=one&tag=final"),
        ("GET", "/datastore/label", "label=one&tag=anonymised"),
        ("POST", "/batch/infer/anonymize", "run_sync=true"),
        ("GET", "/batch/infer", ""),
        ("GET", "/datastore/", "output=stats"),
    ],
)
def test_what_is_listed_is_reached(method, path, query):
    assert ask(Guard(plain), method, path, query) == (200, "reached")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/model/anonymize"),
        ("GET", "/model/info/anonymize"),
        ("PUT", "/model/anonymize"),
        ("DELETE", "/model/anonymize"),
        ("GET", "/logs/"),
        ("GET", "/logs/gpu"),
        ("GET", "/datastore/dataset"),
        ("GET", "/datastore/image"),
        ("HEAD", "/datastore/image"),
        ("GET", "/datastore/image/info"),
        ("DELETE", "/datastore/image"),
        ("DELETE", "/datastore/"),
        ("PUT", "/datastore/label/info"),
        ("PUT", "/session/"),
        ("GET", "/session/one"),
        ("GET", "/proxy/dicom/wado/x"),
        ("GET", "/ohif/index.html"),
        ("POST", "/infer/wsi/anonymize"),
        ("POST", "/infer/wsi_v2/anonymize"),
        ("POST", "/train/anonymize"),
        ("POST", "/activelearning/random"),
        ("POST", "/reload"),
        ("GET", "/openapi.json"),
        ("GET", "/"),
        ("GET", "/static/x"),
        ("OPTIONS", "/info/"),
    ],
)
def test_what_is_not_listed_is_not_there(method, path):
    assert ask(Guard(plain), method, path)[0] == 404


@pytest.mark.parametrize("query", ["session_id=one", "image=a&image=b", "output=image&label=x", "image=a&client=b"])
def test_a_query_with_anything_else_is_refused(query):
    assert ask(Guard(plain), "POST", "/infer/anonymize", query)[0] == 400


def test_originals_are_there_where_they_are_asked_for_only():
    for query in ("output=all", "output=train"):
        assert ask(Guard(plain), "GET", "/datastore/", query)[0] == 403
        assert ask(Guard(plain, originals=True), "GET", "/datastore/", query)[0] == 200
    assert ask(Guard(plain, originals=True), "GET", "/datastore/image", "image=one")[0] == 200
    assert ask(Guard(plain, originals=True), "GET", "/model/anonymize")[0] == 404


@pytest.mark.parametrize("client", ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1", "nonsense", ""])
def test_another_machine_is_refused(client):
    assert ask(Guard(plain), "GET", "/info/", client=client)[0] == 403


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.8.8", "::1"])
def test_this_machine_is_not(client):
    assert ask(Guard(plain), "GET", "/info/", client=client)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        [(b"host", b"evil.example:8000")],
        [],
        [HOST, (b"origin", b"http://evil.example")],
        [HOST, (b"origin", b"null")],
        [HOST, (b"Sec-Fetch-Site", b"cross-site")],
    ],
)
def test_web_pages_and_other_names_of_this_machine_are_refused(headers):
    assert ask(Guard(plain), "GET", "/info/", headers=headers)[0] == 403


def test_a_page_that_is_named_may_ask():
    guard, origin = Guard(plain, origins=["http://viewer.example:3000/"]), (b"origin", b"http://viewer.example:3000")
    assert ask(guard, "GET", "/info/", headers=[HOST, origin])[0] == 200
    assert ask(guard, "OPTIONS", "/info/", headers=[HOST, origin])[0] == 200
    assert ask(guard, "GET", "/model/x", headers=[HOST, origin])[0] == 404


def test_an_error_that_nobody_foresaw_says_nothing_of_itself(caplog):
    async def breaks(scope, receive, send):
        raise KeyError("/studies/Plant^Quirin.dcm")

    with caplog.at_level(logging.DEBUG):
        status, said = ask(Guard(breaks), "GET", "/info/")
    assert status == 500
    assert "Plant" not in said + caplog.text
    assert "KeyError" in caplog.text


def test_a_refusal_is_told_with_its_status():
    async def refuses(scope, receive, send):
        raise RequestError("no such image in the datastore", 404)

    status, said = ask(Guard(refuses), "GET", "/info/")
    assert (status, json.loads(said)) == (404, {"detail": "no such image in the datastore"})


# ---- What is taken from a request ----


@pytest.mark.parametrize("name", ["image", "label", "session", "model", "description", "path"])
def test_no_parameter_names_a_file(name):
    for task in ("anonymize", "counterfactual", "retrieve", requests.BATCH):
        with pytest.raises(RequestError, match="not taken") as error:
            requests.taken(task, json.dumps({name: "/etc/passwd"}))
        assert "passwd" not in str(error.value)


@pytest.mark.parametrize("given", ["[]", "3", "{", '"image"', "null"])
def test_params_that_are_no_object_are_refused(given):
    with pytest.raises(RequestError, match="no JSON object"):
        requests.taken("anonymize", given)


def test_a_copy_is_saved_under_its_own_tag_only():
    assert requests.taken("anonymize", {"label_tag": "anonymised", "save_label": True}) == {"save_label": True}
    with pytest.raises(RequestError, match="under no other tag"):
        requests.taken("anonymize", {"label_tag": "../../etc"})


def test_what_viewers_always_send_is_left_out():
    assert requests.taken("anonymize", {"device": "cpu", "client_id": "x", "result_extension": ".nrrd"}) == {}


@pytest.mark.parametrize("tag", ["anonymised", "../x", "a/b", "", ".", "a b", "x" * 65])
def test_tags_that_lead_out_or_are_the_servers_are_refused(tag):
    with pytest.raises(RequestError):
        requests.open_tag(tag)


@pytest.mark.parametrize("image", ["../x", "/etc/passwd", "a/b", ".hidden", "", "x" * 129, "there", "a\n"])
def test_ids_that_lead_out_or_are_taken_are_refused(image):
    with pytest.raises(RequestError):
        requests.new_id(image, ["there"])


def test_a_path_is_no_id():
    assert requests.known_id("there", ["there"]) == "there"
    with pytest.raises(RequestError, match="a path is not taken"):
        requests.known_id("/etc/hostname", ["there"])


@pytest.mark.parametrize(
    ("name", "suffix"), [("a.NII.GZ", ".nii.gz"), ("/tmp/a.png", ".png"), ("1.2.840", ""), (None, ""), ("a.exe", "")]
)
def test_the_ending_of_an_upload_is_one_that_is_known(name, suffix):
    assert requests.suffix_of(name) == suffix


# ---- A batch ----


def answers(image):
    if image == "withheld":
        raise RequestError("withheld", 422)
    if image == "kept":
        raise RequestError("there is a copy", 409)
    if image == "refused":
        raise RequestError("no image", 400)
    if image == "Plant":
        raise KeyError(image)


def test_a_batch_counts_and_goes_on_after_failures(caplog):
    batch = Batch()
    images = ["one", "withheld", "kept", "refused", "Plant", "two"]
    with caplog.at_level(logging.DEBUG):
        found = batch.start(lambda: batch.run(images, answers), wait=True)
    assert found == {"status": "DONE", "images": 6, "released": 2, "withheld": 1, "kept": 1, "refused": 1, "failed": 1}
    assert "Plant" not in caplog.text


def test_one_batch_at_a_time_which_can_be_stopped():
    batch = Batch()

    def slow(image):
        time.sleep(0.01)

    with pytest.raises(RequestError, match="no batch"):
        batch.status()
    assert batch.start(lambda: batch.run(["one"] * 10_000, slow))["status"] == "RUNNING"
    with pytest.raises(RequestError, match="running already"):
        batch.start(lambda: None)
    batch.stop()
    end = time.monotonic() + 5
    while batch.status()["status"] == "RUNNING" and time.monotonic() < end:
        time.sleep(0.01)
    found = batch.status()
    assert found["status"] == "STOPPED"
    assert found.get("released", 0) < 10_000
    assert batch.start(lambda: batch.run(["one"], slow), wait=True)["status"] == "DONE"


def test_a_batch_that_fails_says_so_and_leaves_room_for_the_next():
    batch = Batch()

    def fails():
        raise RequestError("batch inference is there for anonymize only", 404)

    with pytest.raises(RequestError, match="for anonymize only"):
        batch.start(fails, wait=True)
    assert batch.status()["status"] == "ERROR"
    assert batch.start(lambda: batch.run([], answers), wait=True)["status"] == "DONE"
