"""A cache is filled once, goes on after a kill, is repaired where it is damaged, and says when a disk is too small."""

import collections
import errno
import fcntl
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from monai_anon import image_cache, image_store
from monai_anon.cohort import Cohort
from monai_anon.image_cache import DIGEST_BYTES, DamagedCache, ImageFile, NoSpaceError, digest_of, use_or_fill
from monai_anon.image_store import CohortError
from monai_anon.manifest import PARTS, load_manifest, save_manifest

SIZE, IMAGES = 8, (20, 3, 3)
OTHER_PARTS = {f"{part}0{i}.png" for part in PARTS[1:] for i in range(3)}
MAPPED = {"memory_limit_mb": 1e-5}


@pytest.fixture
def manifest(tmp_path):
    return write_cohort(tmp_path / "data")


def write_cohort(folder):
    """26 images of 8x8, 20 in training."""
    generator, parts = np.random.default_rng(0), {}
    folder.mkdir()
    for part, count in zip(PARTS, IMAGES, strict=True):
        parts[part] = [
            {"image": f"{part}{i:02d}.png", "patient": f"{part}{i % 3}", "finding": i % 2} for i in range(count)
        ]
        for entry in parts[part]:
            pixels = generator.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / entry["image"])
    return load_manifest(save_manifest(folder, parts, ["absent", "effusion"]))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch):
    """How often each file is decoded."""
    counts, read = collections.Counter(), image_store.read_image
    monkeypatch.setattr(image_store, "read_image", lambda path, *rest: counts.update([path.name]) or read(path, *rest))
    return counts


def load(manifest, cache, part="training", **options):
    return Cohort.from_manifest(manifest, part, SIZE, cache_dir=cache, progress=False, **options)


def the_file(cache):
    (path,) = cache.iterdir()
    return path


def fill_two(draft):
    images = np.arange(32, dtype=np.uint8).reshape(2, 1, 4, 4)
    draft.write(0, images, np.stack([np.frombuffer(digest_of(image), np.uint8) for image in images]))


def overwrite(path, place, content):
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


def image_place(index):
    """Where an image of the tiny cohort begins."""
    return 4096 + index * SIZE * SIZE


# ---- Made once, whole or not at all ----


def test_all_parts_come_from_one_cache_and_each_file_is_decoded_once(manifest, cache, decoded):
    cached = {part: load(manifest, cache, part).images for part in PARTS}
    assert set(decoded.values()) == {1}
    assert len(decoded) == sum(IMAGES)
    for part in PARTS:
        plain = Cohort.from_manifest(manifest, part, SIZE, progress=False)
        assert torch.equal(cached[part], plain.images)
    np.testing.assert_array_equal(np.load(the_file(cache)), torch.cat(list(cached.values())).numpy())


def test_another_size_or_another_state_of_a_file_is_another_cache(manifest, cache, decoded):
    load(manifest, cache)
    load(manifest, cache, "test")
    Cohort.from_manifest(manifest, "training", 16, cache_dir=cache, progress=False)
    os.utime(manifest.folder / "test01.png", ns=(1, 1))
    load(manifest, cache)
    assert len(list(cache.iterdir())) == 3
    assert set(decoded.values()) == {3}


def test_refused_images_leave_no_file_and_are_refused_again(manifest, cache):
    (manifest.folder / "training07.png").write_bytes((manifest.folder / "training03.png").read_bytes())
    (manifest.folder / "test02.png").write_bytes((manifest.folder / "training03.png").read_bytes())
    for name in ("training01.png", "validation00.png"):
        (manifest.folder / name).write_bytes(b"no picture")
    for _ in range(2):
        with pytest.raises(CohortError) as caught:
            load(manifest, cache)
        first, second, again, leak = caught.value.problems
        assert first.startswith("training[1] training01.png: cannot be decoded")
        assert second.startswith("validation[0] validation00.png: cannot be decoded")
        assert again.startswith("training[7] training07.png: the same pixels as training[3] training03.png; keep one")
        assert leak.startswith("test[2] test02.png: the same pixels as training[3] training03.png (a leak between")
        assert not list(cache.iterdir())


# ---- Going on after a kill ----

BUILD = """
import sys, time
from monai_anon import image_store
from monai_anon.cohort import Cohort

def read(path, channels, to_gray, read=image_store.read_image):
    if path.name >= "training12":
        print("reached", flush=True)
        time.sleep(60)
    return read(path, channels, to_gray)

image_store.read_image, image_store._AT_ONCE, image_store.threads = read, 2, lambda: 1
Cohort.from_manifest(sys.argv[1], "training", 8, cache_dir=sys.argv[2], progress=False)
"""


def start(program, *arguments):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A manifest, and the cache folder of a process that was killed when 12 of its 20 training images were there."""
    folder = tmp_path_factory.mktemp("stopped")
    manifest = write_cohort(folder / "data")
    with start(BUILD, manifest.path, folder / "cache") as child:
        assert child.stdout.readline() == "reached\n"
        child.kill()
    assert child.returncode == -signal.SIGKILL
    return manifest, folder / "cache"


@pytest.fixture
def draft(stopped, cache):
    shutil.copytree(stopped[1], cache)
    return the_file(cache)


def test_a_killed_build_goes_on_where_it_stopped(stopped, cache, draft, decoded):
    resumed = load(stopped[0], cache)
    assert set(decoded) == {f"training{i}.png" for i in range(12, 20)} | OTHER_PARTS
    assert draft.name.startswith(".")
    assert the_file(cache).name == draft.name[1:]
    assert torch.equal(resumed.images, Cohort.from_manifest(stopped[0], "training", SIZE, progress=False).images)


def test_what_did_not_reach_the_disk_is_read_again(stopped, cache, draft, decoded):
    expected = Cohort.from_manifest(stopped[0], "training", SIZE, progress=False).images
    decoded.clear()
    overwrite(draft, image_place(5), bytes(SIZE * SIZE))
    assert torch.equal(load(stopped[0], cache).images, expected)
    assert decoded["training05.png"] == 1
    assert decoded["training04.png"] == decoded["training06.png"] == 0


def test_the_draft_of_another_state_of_the_files_is_not_used(stopped, cache, draft, decoded):
    touched = stopped[0].folder / "training00.png"
    before = touched.stat().st_mtime_ns
    os.utime(touched, ns=(1, 1))
    load(stopped[0], cache)
    os.utime(touched, ns=(before, before))
    assert len(decoded) == sum(IMAGES)
    assert draft.exists()


# ---- Several processes ----

FILL = """
import os, sys, time
import numpy as np
from pathlib import Path
from monai_anon.image_cache import digest_of, use_or_fill

path, log, seconds = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])

def fill(draft):
    with open(log, "a") as file:
        file.write(f"{int(draft.sound_digests().any(axis=1).sum())}\\n")
    for index in range(10):
        image = np.full((1, 1, 4, 4), index, np.uint8)
        draft.write(index, image, np.frombuffer(digest_of(image), np.uint8)[None])
        time.sleep(seconds)

print(use_or_fill(path, (10, 1, 4, 4), lambda cache: cache.read(0, 10).sum(), fill))
"""


def counted(log):
    return log.read_text().split() if log.exists() else []


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_several_processes_one_fills_and_all_use_it(tmp_path):
    path, log = tmp_path / "cache" / "a.npy", tmp_path / "log"
    children = [start(FILL, path, log, 0.05) for _ in range(3)]
    sums = [child.communicate(timeout=60)[0] for child in children]
    assert sums == [f"{16 * 45}\n"] * 3
    assert counted(log) == ["0"]
    assert list(path.parent.iterdir()) == [path]


def test_who_waits_goes_on_with_the_work_of_a_killed_process(tmp_path):
    path, log = tmp_path / "cache" / "a.npy", tmp_path / "log"
    first = start(FILL, path, log, 10)
    wait_for(lambda: counted(log))
    second = start(FILL, path, log, 0)
    time.sleep(0.3)
    first.kill()
    first.communicate()
    assert second.communicate(timeout=60)[0] == f"{16 * 45}\n"
    assert counted(log) == ["0", "1"]


def test_who_waits_for_a_build_that_is_refused_makes_its_own(tmp_path):
    began, go_on = threading.Event(), threading.Event()

    def refuse(draft):
        began.set()
        assert go_on.wait(30)
        raise ValueError("refused")

    with ThreadPoolExecutor(2) as pool:
        arguments = tmp_path / "a.npy", (2, 1, 4, 4), lambda cache: cache.read(0, 2)
        first = pool.submit(use_or_fill, *arguments, refuse)
        assert began.wait(30)
        second = pool.submit(use_or_fill, *arguments, fill_two)
        time.sleep(0.2)
        go_on.set()
        assert str(first.exception(30)) == "refused"
        assert second.result(30).flatten().tolist() == list(range(32))


def test_without_locks_each_process_has_a_draft_of_its_own(manifest, cache, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    seen, lay_out = [], ImageFile.lay_out
    monkeypatch.setattr(ImageFile, "lay_out", lambda draft: seen.append(draft.path) or lay_out(draft))
    for name in ("one", "two"):
        load(manifest, cache)
        next(path for path in cache.iterdir() if not path.name.startswith(".")).rename(cache.parent / name)
    assert seen[0] != seen[1]
    assert (cache.parent / "one").read_bytes() == (cache.parent / "two").read_bytes()


# ---- Damage ----


@pytest.mark.parametrize("options", [{}, MAPPED], ids=["in memory", "on disk"])
@pytest.mark.parametrize("damage", ["pixel", "digest", "header", "cut off", "emptied", "grown"])
def test_a_damaged_cache_is_repaired_with_a_warning_and_never_used(manifest, cache, damage, options, caplog, decoded):
    expected = load(manifest, cache).images
    path, whole = the_file(cache), the_file(cache).read_bytes()
    content = {
        "pixel": whole[: image_place(7)] + bytes([whole[image_place(7)] ^ 1]) + whole[image_place(7) + 1 :],
        "digest": whole[: image_place(26) + 7 * DIGEST_BYTES] + b"?" + whole[image_place(26) + 7 * DIGEST_BYTES + 1 :],
        "header": b"?" + whole[1:],
        "cut off": whole[: image_place(7)],
        "emptied": b"",
        "grown": whole + b"?",
    }[damage]
    path.write_bytes(content)
    decoded.clear()
    with caplog.at_level(logging.WARNING):
        repaired = load(manifest, cache, **options)
    assert torch.equal(repaired.images, expected)
    assert "is damaged" in caplog.text
    assert the_file(cache).read_bytes() == whole
    again = {"pixel": {"training07.png"}, "digest": {"training07.png"}, "header": set(), "grown": set()}
    assert damage not in again or set(decoded) == again[damage]


def test_of_an_array_on_disk_a_sample_is_verified_or_all_of_it(manifest, cache, monkeypatch, caplog):
    expected = load(manifest, cache).images
    monkeypatch.setattr(image_store, "_SAMPLE", 0)
    overwrite(the_file(cache), image_place(7), b"????")
    assert not torch.equal(load(manifest, cache, **MAPPED).images, expected)
    assert not caplog.records
    assert torch.equal(load(manifest, cache, verify=True, **MAPPED).images, expected)
    assert "1 of 26 images do not agree with their digests, the first is number 7" in caplog.text


def test_an_image_that_is_missing_on_disk_is_found_without_reading_all(manifest, cache, monkeypatch):
    load(manifest, cache)
    monkeypatch.setattr(image_store, "_SAMPLE", 0)
    path = the_file(cache)
    overwrite(path, image_place(26) + 11 * DIGEST_BYTES, bytes(DIGEST_BYTES))
    with pytest.raises(DamagedCache, match="1 of 26 images"):
        ImageFile(path, (26, 1, SIZE, SIZE)).check([0])


# ---- Room on the disk ----


def test_a_disk_that_is_too_small_is_told_before_anything_is_read(manifest, cache, monkeypatch, decoded):
    usage = shutil.disk_usage(cache.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(NoSpaceError, match=r"cache: 0\.01 MB are needed .*, 0\.00 MB are available; make room, or"):
        load(manifest, cache)
    assert not decoded
    assert not list(cache.iterdir())


@pytest.mark.parametrize("short", [False, True])
def test_a_disk_that_fills_up_stops_the_build_and_what_is_there_is_used(manifest, cache, monkeypatch, decoded, short):
    write = os.pwrite

    def fail(descriptor, content, place):
        if place < image_place(16) or place > image_place(25):
            return write(descriptor, content, place)
        if short:
            return write(descriptor, memoryview(content).cast("B")[:3], place)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "pwrite", fail)
        with pytest.raises(NoSpaceError, match=r"the disk is full; 0\.01 MB are needed in all"):
            load(manifest, cache)
    decoded.clear()
    load(manifest, cache)
    assert set(decoded) == {f"training{i}.png" for i in range(16, 20)} | OTHER_PARTS


def test_drafts_that_nobody_wrote_to_for_a_day_are_removed(manifest, cache):
    cache.mkdir()
    drafts = {name: cache / f".1x8_{name}.npy" for name in ("old", "young", "locked")}
    for path in drafts.values():
        path.write_bytes(b"draft")
    for name in ("old", "locked"):
        os.utime(drafts[name], (time.time() - 90_000,) * 2)
    with drafts["locked"].open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        load(manifest, cache)
    assert {name for name, path in drafts.items() if path.exists()} == {"young", "locked"}


def test_hidden_files_that_are_no_drafts_are_left_alone(manifest, cache):
    cache.mkdir()
    foreign = cache / "._1x8_copy.npy"  # as another system leaves them
    foreign.write_bytes(b"")
    os.utime(foreign, (time.time() - 90_000,) * 2)
    load(manifest, cache)
    assert foreign.exists()


# ---- Reading from the disk ----


def test_a_file_larger_than_memory_can_be_mapped(tmp_path):
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    count = 2 * memory // 2**20
    file = ImageFile(tmp_path / "sparse.npy", (count, 1, 1024, 1024), writable=True)
    os.ftruncate(file.descriptor, file.size)
    assert file.memory_map(0, count)[count - 1].max() == 0
    assert file.gather(0, count, np.array([count - 1])).shape == (1, 1, 1024, 1024)


def test_a_reader_can_be_sent_to_another_process(tmp_path):
    file = use_or_fill(tmp_path / "a.npy", (2, 1, 4, 4), lambda cache: cache, fill_two)
    sent = pickle.loads(pickle.dumps(file))
    assert sent.descriptor != file.descriptor
    assert sent.gather(1, 2, np.array([0])).flatten().tolist() == list(range(16, 32))
    assert image_cache.threads() >= 1
