"""Copies have their original's form and nothing else of it; what cannot be checked is not written."""

from __future__ import annotations

import struct
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from tiny import FakeAnonymizer
from tiny_bundle import SIZE, tiny_anonymizer
from torch import Tensor, nn

from monai_anon import release
from monai_anon.drawing import Drawing, image_noise
from monai_anon.jobs import Job, Refusal
from monai_anon.release import FileAnonymizer, read_original, write_bytes


def save(path: Path, height: int = SIZE, width: int = SIZE, top: int = 255, mode: str = "L", **options) -> Job:
    """A smooth random picture; the job that copies it beside itself."""
    generator = np.random.default_rng(len(path.name) + height)
    image = Image.fromarray(generator.random((6, 6), dtype=np.float32)).resize((width, height), Image.BICUBIC)
    values = np.asarray(image)
    values = (values - values.min()) / np.ptp(values) * top
    picture = Image.fromarray(values.astype(np.uint16 if top > 255 or mode == "I;16" else np.uint8))
    (picture if mode == "I;16" else picture.convert(mode)).save(path, format="PNG", **options)
    return Job(path, path.with_name(f"copy_{path.name}"), path.name)


def run(jobs: list[Job], model: nn.Module | None = None, **options) -> list[Refusal]:
    options = {"seed": 1, "keep_form": True} | options
    overwrite, drawing = options.pop("overwrite", False), Drawing(model or tiny_anonymizer(), options.pop("seed"))
    return FileAnonymizer(drawing, SIZE, **options).run(jobs, overwrite, progress=False)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def chunks(path: Path) -> list[bytes]:
    content, names, place = path.read_bytes(), [], 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        names.append(content[place + 4 : place + 8])
        place += length + 12
    return names


@pytest.mark.parametrize(("height", "width"), [(SIZE, SIZE), (50, 47), (20, 64), (90, 31)])
def test_a_copy_has_its_originals_size_and_is_another_picture(tmp_path: Path, height: int, width: int) -> None:
    job = save(tmp_path / "a.png", height, width)
    assert run([job]) == []
    with Image.open(job.target) as copy:
        assert (copy.size, copy.mode, copy.format) == ((width, height), "L", "PNG")
    assert np.abs(pixels(job.target) - pixels(job.source)).mean() > 5


def test_in_the_models_form_a_file_tells_no_more_than_its_pixels(tmp_path: Path) -> None:
    """Where nothing of the original reaches the pixels, copies of one name are the same bytes whatever they copy."""
    forms = {"small": {}, "wide": {"width": 90}, "deep": {"top": 4000, "mode": "I;16"}, "colour": {"mode": "RGB"}}
    copies = []
    for name, form in forms.items():
        (tmp_path / name).mkdir()
        job = save(tmp_path / name / "a.png", **form)
        assert run([job], FakeAnonymizer(lambda image: torch.full_like(image, 0.25)), keep_form=False) == []
        copies.append(job.target.read_bytes())
    assert len(set(copies)) == 1
    with Image.open(job.target) as copy:
        assert (copy.size, copy.mode) == ((SIZE, SIZE), "L")


def test_a_randomised_response_does_not_follow_from_the_seed(tmp_path: Path) -> None:
    """Two copies made with one seed and one response would tell apart what the response is to hide."""
    job, seen = save(tmp_path / "a.png"), []

    class Responding(FakeAnonymizer):
        channel = SimpleNamespace(epsilon=0.5)
        noise_size = 5

        def forward(self, image: Tensor, noise: Tensor) -> Tensor:
            seen.append(noise)
            return -image

    for _ in range(2):
        assert run([job], Responding(None), overwrite=True) == []
    assert torch.equal(seen[0][:, :-2], seen[1][:, :-2])
    assert (seen[0][:, -2:] != seen[1][:, -2:]).all()


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_a_jpeg_becomes_a_png_of_pixels_alone(tmp_path: Path, suffix: str) -> None:
    from monai_anon.jobs import plan_files

    folder, size = tmp_path / "in", (40, 36)
    folder.mkdir()
    picture = Image.fromarray((np.random.default_rng(0).random((36, 40)) * 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe"
    picture.save(folder / f"a{suffix}", format="JPEG", exif=exif)
    plan = plan_files([folder], tmp_path / "out")
    assert run(plan.jobs) == []
    copy = tmp_path / "out" / "a.png"
    with Image.open(copy) as opened:
        assert (opened.size, opened.mode, opened.format) == (size, "L", "PNG")
    assert set(chunks(copy)) == {b"IHDR", b"IDAT", b"IEND"}
    assert b"Jane" not in copy.read_bytes()


@pytest.mark.parametrize(("top", "full_scale"), [(255, 255), (4000, 4095), (60000, 65535)])
def test_sixteen_bits_stay_sixteen_bits_in_the_same_range(tmp_path: Path, top: int, full_scale: int) -> None:
    job = save(tmp_path / "a.png", 40, 40, top, mode="I;16")
    inverted = FakeAnonymizer(lambda image: -image)
    assert run([job], inverted) == []
    with Image.open(job.target) as copy:
        assert copy.mode == "I;16"
    # black and white change places, within what 32 pixels can show of 40
    expected = full_scale - pixels(job.source)
    assert np.abs(pixels(job.target) - expected).mean() < 0.02 * full_scale
    assert pixels(job.target).max() > 0.9 * full_scale


@pytest.mark.parametrize(("mode", "restored"), [("RGB", "RGB"), ("RGBA", "RGB"), ("P", "RGB"), ("LA", "L"), ("1", "L")])
def test_modes_are_restored_without_an_alpha_channel(tmp_path: Path, mode: str, restored: str) -> None:
    job = save(tmp_path / "a.png", mode=mode)
    assert run([job]) == []
    with Image.open(job.target) as copy:
        assert copy.mode == restored
        assert np.ptp(np.asarray(copy.convert("RGB")), axis=2).max() == 0


def test_a_colour_model_takes_gray_and_colour_images(tmp_path: Path) -> None:
    gray, colour = save(tmp_path / "gray.png"), save(tmp_path / "colour.png")
    picture = Image.merge("RGB", [Image.open(gray.source), *[Image.open(colour.source)] * 2])
    picture.save(colour.source)
    inverted = FakeAnonymizer(lambda image: -image)
    assert run([gray, colour], inverted, channels=3) == []
    assert np.abs(pixels(gray.target) - (255 - pixels(gray.source))).max() <= 1
    assert np.abs(pixels(colour.target) - (255 - pixels(colour.source))).max() <= 1


def test_a_copy_holds_pixels_only(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", "somebody")
    exif = Image.Exif()
    exif[0x013B] = "somebody"
    job = save(tmp_path / "a.png", pnginfo=text, exif=exif, icc_profile=b"somebody", dpi=(72, 72))
    assert len(chunks(job.source)) > 5
    assert run([job]) == []
    assert set(chunks(job.target)) == {b"IHDR", b"IDAT", b"IEND"}


def test_copies_depend_on_seed_and_name_and_not_on_the_batch_or_other_files(tmp_path: Path) -> None:
    jobs = [save(tmp_path / f"{'x' * index}.png") for index in range(1, 6)]
    assert run(jobs, batch_size=5) == []
    first = [pixels(job.target) for job in jobs]
    for batch_size, chosen in ((1, jobs), (2, jobs[::-1]), (3, jobs[3:])):
        for job in chosen:
            job.target.unlink()
        run(chosen, batch_size=batch_size)
        assert max(np.abs(pixels(job.target) - first[jobs.index(job)]).max() for job in chosen) <= 1
    same_picture = Job(jobs[0].source, tmp_path / "renamed.png", "other.png")
    other_seed = jobs[0]._replace(target=tmp_path / "seed.png")
    assert run([same_picture]) == run([other_seed], seed=2) == []
    assert np.abs(pixels(same_picture.target) - first[0]).max() > 1
    assert np.abs(pixels(other_seed.target) - first[0]).max() > 1


def test_without_a_seed_two_runs_differ(tmp_path: Path) -> None:
    job = save(tmp_path / "a.png")
    again = job._replace(target=tmp_path / "again.png")
    assert run([job], seed=None) == run([again], seed=None) == []
    assert np.abs(pixels(job.target) - pixels(again.target)).max() > 1


def test_noise_is_standard_normal_and_its_own_for_every_name() -> None:
    noise = torch.stack([image_noise(0, str(index), 64) for index in range(200)])
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.std()) - 1) < 0.03
    assert len(noise.unique(dim=0)) == 200
    assert not torch.equal(image_noise(1, "11", 4), image_noise(11, "1", 4))
    assert torch.equal(image_noise(-5, "\udcff", 4), image_noise(-5, "\udcff", 4))


def test_files_that_cannot_be_used_are_reported_and_the_others_done(tmp_path: Path) -> None:
    good = [save(tmp_path / "a.png"), save(tmp_path / "z.png")]
    bad = {
        "cut": b"",
        "text": b"",
        "empty": b"",
        "jpeg": b"",
        "constant": b"",
        "clear": b"",
        "deep": b"",
        "colour": b"",
    }
    jobs = {name: save(tmp_path / f"{name}.png") for name in bad}
    jobs["cut"].source.write_bytes(good[0].source.read_bytes()[:200])
    jobs["text"].source.write_text("no picture")
    jobs["empty"].source.write_bytes(b"")
    Image.open(good[0].source).save(jobs["jpeg"].source, format="JPEG")
    Image.new("L", (40, 40), 7).save(jobs["constant"].source)
    Image.merge("LA", [Image.open(good[0].source)] * 2).save(jobs["clear"].source)
    jobs["deep"].source.write_bytes(_sixteen_bit_colour())
    Image.effect_noise((40, 40), 50).convert("RGB").save(jobs["colour"].source)
    swapped = Image.open(good[0].source)
    Image.merge("RGB", [swapped, swapped.rotate(90), swapped]).save(jobs["colour"].source)
    jobs["gone"] = Job(tmp_path / "gone.png", tmp_path / "copy_gone.png", "gone.png")

    refusals = run([good[0], *jobs.values(), good[1]], batch_size=4)
    reasons = {refusal.path.stem: refusal.reason for refusal in refusals}
    expected = {
        "cut": "cannot be decoded", "text": "cannot be decoded", "empty": "0 bytes", "jpeg": "no PNG file",
        "constant": "constant", "clear": "transparent", "deep": "16-bit colour", "colour": "a colour image",
        "gone": "no such file",
    }  # fmt: skip
    assert reasons.keys() == expected.keys()
    assert {name: words for name, words in expected.items() if words not in reasons[name]} == {}
    assert all(job.target.exists() for job in good)
    assert not any(job.target.exists() for job in jobs.values())


def _sixteen_bit_colour() -> bytes:
    """A PNG of 8 x 8 pixels with 16 bits a channel, which Pillow does not write."""
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = b"".join(b"\0" + bytes([37 * row % 256] * 48) for row in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda image: image.index_put((torch.tensor([0]),), torch.tensor(torch.nan)), "NaN or infinite"),
        (lambda image: image.index_put((torch.tensor([0]),), torch.tensor(torch.inf)), "NaN or infinite"),
        (lambda image: torch.cat([image[:1] * 3, -image[1:]]), "outside of"),
        (lambda image: torch.cat([image[:1], -image[1:]]), "gave the original back"),
    ],
)
def test_an_image_that_came_out_wrong_is_withheld_alone(tmp_path: Path, answer, reason: str) -> None:
    jobs = [save(tmp_path / "a.png"), save(tmp_path / "bb.png")]

    def turned(image: Tensor) -> Tensor:
        answered = answer(image)
        return torch.cat([answered[:1], -image[1:]])

    (refusal,) = run(jobs, FakeAnonymizer(turned))
    assert refusal.path == jobs[0].source and reason in refusal.reason
    assert not jobs[0].target.exists() and jobs[1].target.exists()


@pytest.mark.parametrize("answer", [lambda image: image[:, :, :16], lambda image: image[:1], lambda image: image[0]])
def test_images_of_a_wrong_shape_are_withheld(tmp_path: Path, answer) -> None:
    jobs = [save(tmp_path / "a.png"), save(tmp_path / "bb.png")]
    refusals = run(jobs, FakeAnonymizer(lambda image: answer(-image)))
    assert [refusal.path for refusal in refusals] == [job.source for job in jobs]
    assert all("shape" in refusal.reason for refusal in refusals)
    assert not any(job.target.exists() for job in jobs)


def test_files_are_read_and_written_side_by_side_and_refused_in_their_order(tmp_path: Path, monkeypatch) -> None:
    jobs = [save(tmp_path / f"{'x' * index}.png") for index in range(1, 7)]
    jobs[1].source.write_bytes(b"")
    jobs[4].target.write_bytes(b"here already")
    monkeypatch.setattr("joblib.cpu_count", lambda: 3)
    together, delays = threading.Barrier(2, timeout=20), iter([0.3, 0.2, 0.1] + [0.0] * 9)
    met = {path for job in (jobs[0], jobs[2]) for path in (job.source, job.target)}

    def beside_another(function):
        def run(*arguments, **options):
            if any(isinstance(argument, Path) and argument in met for argument in arguments):
                together.wait()  # breaks where one waits for the other to end
            time.sleep(next(delays))
            return function(*arguments, **options)

        return run

    monkeypatch.setattr(release, "read_original", beside_another(read_original))
    monkeypatch.setattr(release, "write_bytes", beside_another(write_bytes))
    reported = [refusal.path for refusal in run([*jobs, jobs[1]], batch_size=7)]
    assert reported == [jobs[1].source, jobs[1].source, jobs[4].source]
    assert [job.target.exists() for job in jobs] == [True, False, True, True, True, True]


def test_many_cores_do_not_decode_a_whole_batch_at_once(tmp_path: Path, monkeypatch) -> None:
    jobs = [save(tmp_path / f"{'x' * index}.png") for index in range(1, 21)]
    monkeypatch.setattr("joblib.cpu_count", lambda: 64)
    lock, running, most = threading.Lock(), [], []

    def counted(*arguments):
        with lock:
            running.append(1)
            most.append(len(running))
        time.sleep(0.02)
        try:
            return read_original(*arguments)
        finally:
            running.pop()

    monkeypatch.setattr(release, "read_original", counted)
    assert run(jobs, batch_size=20) == []
    assert 1 < max(most) <= 8 and len(most) == 20


def test_a_file_that_has_come_meanwhile_stays_also_without_hard_links(tmp_path: Path, monkeypatch) -> None:
    def refused(source, target) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    job = save(tmp_path / "a.png")
    assert run([job]) == []
    before = job.target.read_bytes()
    (refusal,) = run([job], seed=2)
    assert "exists already" in refusal.reason
    assert job.target.read_bytes() == before
