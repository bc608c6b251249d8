"""Laws of pairs, exact resume, and every unusable image refused, all at once."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from monai_anon import cohort as cohort_module
from monai_anon import image_store
from monai_anon.cohort import Cohort, PairLoader, PairSampler
from monai_anon.image_store import CohortError, check_images
from monai_anon.manifest import PARTS, load_manifest, save_manifest


def make_cohort(patient, finding, classes=("absent", "effusion"), size=4):
    """Image i is filled with i, so that a batch shows which images are in it."""
    images = torch.arange(len(patient), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, size, size).contiguous()
    return Cohort(images, torch.tensor(patient), torch.tensor(finding), [{}] * len(patient), classes)


@pytest.fixture
def mixed():
    """90 images, 3 findings, patients with 1 to 12 images whose findings vary; one patient has most of a finding."""
    generator = np.random.default_rng(0)
    patient = np.sort(generator.choice(20, 90, p=(w := np.arange(1, 21)) / w.sum()))
    order = generator.permutation(90)
    return make_cohort(patient[order].tolist(), generator.integers(0, 3, 90).tolist(), ("a", "b", "c"))


def test_patients_in_whom_the_finding_changes_are_counted_among_those_with_several_images():
    assert make_cohort([0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 0, 1]).changing_findings() == (1, 2)
    assert make_cohort([], []).changing_findings() == (0, 0)


def drawn(sampler, iterations):
    batches = [sampler.indices(i) for i in range(iterations)]
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def test_tar_is_of_another_patient_with_another_finding(mixed):
    pairs = drawn(PairSampler(mixed, 8), 200)
    assert (mixed.patient[pairs["ori"]] != mixed.patient[pairs["tar"]]).all()
    assert (mixed.finding[pairs["ori"]] != mixed.finding[pairs["tar"]]).all()


def test_same_is_another_image_of_the_patient_or_marked(mixed):
    pairs = drawn(PairSampler(mixed, 8), 200)
    ori, same, has_same = pairs["ori"], pairs["same"], pairs["has_same"]
    assert (mixed.patient[ori] == mixed.patient[same]).all()
    several = torch.bincount(mixed.patient)[mixed.patient[ori]] > 1
    assert (torch.from_numpy(has_same) == several).all()
    assert ((ori == same) == ~has_same).all()
    assert 0 < has_same.mean() < 1


def test_every_possible_pair_is_drawn_equally_often(mixed):
    pairs = drawn(PairSampler(mixed, 9), 10 * 400)
    patient, finding = mixed.patient.numpy(), mixed.finding.numpy()
    for ori in (0, 17, 55):
        mine = pairs["ori"] == ori
        allowed = np.flatnonzero((patient != patient[ori]) & (finding != finding[ori]))
        counts = np.bincount(pairs["tar"][mine], minlength=90)
        assert set(np.flatnonzero(counts)) == set(allowed)
        assert counts[allowed].max() < 3 * counts[allowed].mean()
        others = set(np.flatnonzero(patient == patient[ori])) - {ori}
        assert set(pairs["same"][mine]) == (others or {ori})


def test_an_epoch_visits_every_image_once_in_a_new_order(mixed):
    sampler = PairSampler(mixed, 9)
    first, second = ([sampler.indices(e * 10 + i)["ori"] for i in range(10)] for e in range(2))
    assert len(sampler) == 10
    assert sorted(np.concatenate(first)) == sorted(np.concatenate(second)) == list(range(90))
    assert not np.array_equal(first, second)


def test_batches_depend_on_seed_rank_and_iteration_alone(mixed):
    ordered, jumping = PairSampler(mixed, 8, seed=3), PairSampler(mixed, 8, seed=3)
    expected = [ordered.indices(i) for i in range(30)]
    for i in (29, 3, 17, 3):
        for key, values in jumping.indices(i).items():
            np.testing.assert_array_equal(values, expected[i][key])
    assert not np.array_equal(PairSampler(mixed, 8, seed=4).indices(0)["ori"], expected[0]["ori"])


def test_ranks_share_an_epoch_without_overlap(mixed):
    ranks = [PairSampler(mixed, 9, rank=rank, world_size=2) for rank in range(2)]
    visited = [np.concatenate([sampler.indices(i)["ori"] for i in range(len(sampler))]) for sampler in ranks]
    assert sorted(np.concatenate(visited)) == list(range(90))
    assert [len(sampler) for sampler in ranks] == [5, 5]


def test_what_does_not_fill_a_batch_is_left_out_unless_it_is_all(mixed):
    assert len(PairSampler(mixed, 8)) == 11
    sampler = PairSampler(mixed, 200)
    assert len(sampler) == 1
    assert len(sampler.indices(0)["ori"]) == len(sampler.indices(1)["ori"]) == 90


def test_a_cohort_of_single_images_has_targets_and_no_same():
    pairs = drawn(PairSampler(make_cohort([0, 1, 2, 3], [0, 1, 0, 1]), 4), 5)
    assert not pairs["has_same"].any()
    np.testing.assert_array_equal(pairs["same"], pairs["ori"])


def test_images_without_a_target_are_left_out_as_anchors_only_and_counted(caplog):
    # All effusions are patient 0's: no other patient's effusion exists for patient 0's healthy image 2.
    cohort = make_cohort([0, 0, 0, 1, 2], [1, 1, 0, 0, 0])
    with caplog.at_level(logging.WARNING):
        sampler = PairSampler(cohort, 2)
    assert (sampler.left_out, sampler.anchors.tolist()) == (1, [0, 1, 3, 4])
    assert "1 of 5 images have no image of another patient with another finding" in caplog.text
    pairs = drawn(sampler, 40)
    assert 2 not in pairs["ori"]
    assert 2 in pairs["same"]


@pytest.mark.parametrize(
    ("patient", "finding", "reason"),
    [
        ([0, 1, 2], [1, 1, 1], r"3 patient\(s\) and the finding\(s\) effusion; pairs need two of each"),
        ([5, 5, 5], [0, 1, 0], r"1 patient\(s\) and the finding\(s\) absent, effusion"),
        ([0], [0], "0 of 1 images have"),
    ],
)
def test_a_cohort_without_any_pair_is_refused(patient, finding, reason):
    with pytest.raises(CohortError, match=reason):
        PairSampler(make_cohort(patient, finding), 2)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"seed": -1}, {"rank": 2, "world_size": 2}])
def test_impossible_sampler_arguments_are_refused(mixed, options):
    with pytest.raises(ValueError, match="batch_size >= 1"):
        PairSampler(mixed, **{"batch_size": 4, **options})


def test_a_batch_shows_the_images_that_the_sampler_names(mixed):
    loader = PairLoader(mixed, 8, seed=2)
    indices, batch = loader.sampler.indices(5), loader.batch(5)
    for key, name in (("i_ori", "ori"), ("i_tar", "tar"), ("i_same", "same")):
        assert (batch[key].shape, batch[key].dtype) == ((8, 1, 4, 4), torch.float32)
        np.testing.assert_allclose((batch[key][:, 0, 0, 0] + 1) * 127.5, indices[name], atol=1e-4)
    assert torch.equal(batch["patient_tar"], mixed.patient[indices["tar"]])
    assert torch.equal(batch["finding_ori"], mixed.finding[indices["ori"]])
    assert batch["has_same"].dtype == torch.bool


def test_a_loader_goes_on_from_start_through_epochs(mixed):
    whole, resumed = PairLoader(mixed, 20), PairLoader(mixed, 20)
    batches = [batch["i_ori"] for _ in range(3) for batch in whole]
    assert (len(whole), len(batches), whole.start) == (4, 12, 12)
    resumed.start = 6
    rest = [batch["i_ori"] for _ in range(2) for batch in resumed]
    assert all(torch.equal(a, b) for a, b in zip(rest, batches[6:], strict=True))


@pytest.mark.parametrize("done", [0, 3, 4])
def test_an_ignite_engine_sees_the_same_batches_resumed_as_uninterrupted(mixed, done):
    from ignite.engine import Engine

    def run(start):
        loader, seen = PairLoader(mixed, 20, seed=1), []
        engine = Engine(lambda _, batch: seen.append(batch["i_tar"]))
        if start:
            engine.load_state_dict({"iteration": start, "max_epochs": 3, "epoch_length": 4})
            loader.start = start
        engine.run(loader, max_epochs=3)
        return seen

    expected, seen = run(0), run(done)
    assert len(expected) == 12
    assert all(torch.equal(a, b) for a, b in zip(seen, expected[done:], strict=True))


def test_a_data_loader_gives_what_batch_gives(mixed):
    loaded = next(iter(torch.utils.data.DataLoader(mixed, batch_size=6)))
    expected = mixed.batch(range(6))
    assert all(torch.equal(loaded[key], expected[key]) for key in ("image", "patient", "finding"))
    assert torch.equal(mixed[2]["image"], expected["image"][2])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": torch.zeros(3, 1, 4, 4)}, "must be uint8"),
        ({"patient": torch.zeros(2)}, "one each is needed"),
        ({"finding": torch.tensor([0, 2, 1])}, "findings from 0 to 2; there are 2 classes"),
    ],
)
def test_a_cohort_of_parts_that_do_not_fit_is_refused(change, reason):
    parts = {
        "images": torch.zeros(3, 1, 4, 4, dtype=torch.uint8),
        "patient": torch.zeros(3),
        "finding": torch.zeros(3, dtype=torch.int64),
        "entries": [{}] * 3,
        "classes": ["a", "b"],
    }
    with pytest.raises(ValueError, match=reason):
        Cohort(**{**parts, **change})


@pytest.fixture
def manifest(tmp_path):
    """Eight images of 8x8, four in training."""
    generator, parts = np.random.default_rng(0), {}
    for part, count in zip(PARTS, (4, 2, 2), strict=True):
        parts[part] = [{"image": f"{part}{i}.png", "patient": f"{part}{i % 2}", "finding": i % 2} for i in range(count)]
        for entry in parts[part]:
            Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(tmp_path / entry["image"])
    return load_manifest(save_manifest(tmp_path, parts, ["absent", "effusion"]))


def test_a_part_is_read_in_order_with_codes_for_patients(manifest):
    cohort = Cohort.from_manifest(manifest.path, "training", 8, progress=False)
    for index in range(4):
        stored = np.asarray(Image.open(manifest.folder / f"training{index}.png"))
        np.testing.assert_array_equal(cohort.images[index, 0], stored)
    assert (cohort.patient.tolist(), cohort.finding.tolist()) == ([0, 1, 0, 1], [0, 1, 0, 1])
    assert (cohort.name, cohort.num_patients) == (f"{manifest.folder.name}/training", 2)
    assert Cohort.from_manifest(manifest, "test", 16, channels=3, progress=False).images.shape == (2, 3, 16, 16)


def test_a_manifest_is_read_once_for_its_parts_and_again_where_its_file_has_changed(manifest, monkeypatch):
    read = []
    monkeypatch.setattr(cohort_module, "load_manifest", lambda path: read.append(path) or load_manifest(path))
    for part in PARTS:
        Cohort.from_manifest(manifest.path, part, 8, progress=False)
    assert len(read) == 1
    save_manifest(
        manifest.path, manifest.parts | {"training": manifest.parts["training"][:3]}, ["a", "b"], overwrite=True
    )
    changed = Cohort.from_manifest(manifest.path, "training", 8, progress=False)
    assert (len(read), len(changed), changed.classes) == (2, 3, ["a", "b"])


def test_a_cached_cohort_is_equal_and_not_decoded_again(manifest, tmp_path, monkeypatch):
    plain = Cohort.from_manifest(manifest, "training", 8, progress=False)
    first = Cohort.from_manifest(manifest, "training", 8, cache_dir=tmp_path / "cache", progress=False)
    monkeypatch.setattr(image_store, "read_image", None)
    second = Cohort.from_manifest(manifest, "training", 8, cache_dir=tmp_path / "cache", progress=False)
    assert torch.equal(plain.images, first.images)
    assert torch.equal(plain.images, second.images)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_a_changed_file_or_a_damaged_cache_is_read_anew(manifest, tmp_path):
    options = {"cache_dir": tmp_path / "cache", "progress": False}
    before = Cohort.from_manifest(manifest, "training", 8, **options)
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:90])
    assert torch.equal(Cohort.from_manifest(manifest, "training", 8, **options).images, before.images)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(manifest.folder / "training2.png")
    changed = Cohort.from_manifest(manifest, "training", 8, **options)
    assert changed.images[2].flatten().tolist() == list(range(64))


def test_above_the_memory_limit_the_images_stay_on_disk(manifest, tmp_path):
    with pytest.raises(CohortError, match=r"more than memory_limit_mb=0\.0001; give a cache_dir"):
        Cohort.from_manifest(manifest, "training", 8, memory_limit_mb=1e-4, progress=False)
    options = {"cache_dir": tmp_path / "cache", "progress": False}
    mapped = Cohort.from_manifest(manifest, "training", 8, memory_limit_mb=1e-4, **options)
    plain = Cohort.from_manifest(manifest, "training", 8, **options)
    assert (mapped.memory_mapped, plain.memory_mapped) == (True, False)
    loaders = PairLoader(mapped, 2, seed=5), PairLoader(plain, 2, seed=5)
    for _ in range(3):
        for a, b in zip(*loaders, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)
    assert [loader.start for loader in loaders] == [6, 6]


def test_images_on_disk_are_those_in_memory_in_any_order(manifest, tmp_path):
    options = {"cache_dir": tmp_path / "cache", "progress": False}
    mapped, plain = (
        Cohort.from_manifest(manifest, "validation", 8, memory_limit_mb=limit, **options) for limit in (1e-5, 1)
    )
    for a, b in zip(mapped.batch([1, 0, 1]).values(), plain.batch([1, 0, 1]).values()):
        assert torch.equal(a, b)
    assert torch.equal(mapped.subset([1, 1]).images, plain.images[[1, 1]])
    assert torch.equal(mapped.images, plain.images)
    assert mapped.subset([]).images.shape == (0, 1, 8, 8)
    with pytest.raises(IndexError, match="images -1 to 1 of 2"):
        mapped.subset([-1, 1])


def test_writing_into_a_map_does_not_reach_the_file(manifest, tmp_path):
    cohort = Cohort.from_manifest(
        manifest, "training", 8, cache_dir=tmp_path / "cache", memory_limit_mb=1e-5, progress=False
    )
    (path,) = (tmp_path / "cache").iterdir()
    before = path.read_bytes()
    cohort.images[3] = 0
    assert path.read_bytes() == before


def spoil(folder, name, how):
    """Make an image file bad after its manifest was loaded."""
    path, noise = folder / name, np.random.default_rng(9).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    if how == "unreadable":
        path.write_bytes(path.read_bytes()[:40])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "missing":
        path.unlink()
    elif how == "constant":
        Image.fromarray(np.full((8, 8), 7, np.uint8)).save(path)
    elif how == "colour":
        Image.fromarray(noise).save(path)
    elif how == "nan":
        Image.fromarray(np.where(noise[..., 0] > 128, np.nan, 0.5).astype(np.float32)).save(path, format="TIFF")
        path.rename(path.with_suffix(".tif"))


REASONS = {
    "unreadable": "cannot be decoded",
    "empty": "the file is empty (0 bytes)",
    "missing": "no such file",
    "constant": "is constant: all of its 8x8 pixels are equal",
    "colour": "a colour image where gray is expected",
    "nan": "are NaN or infinite",
}


@pytest.mark.parametrize("how", REASONS)
def test_an_unusable_image_is_refused_with_file_and_reason(manifest, how):
    spoil(manifest.folder, "training1.png", how)
    if how == "nan":
        manifest.parts["training"][1]["image"] = "training1.tif"
    with pytest.raises(CohortError) as caught:
        Cohort.from_manifest(manifest, "training", 8, progress=False)
    (problem,) = caught.value.problems
    assert problem.startswith("training[1] training1.")
    assert REASONS[how] in problem


def test_the_same_pixels_twice_are_refused_and_both_named(manifest):
    original = Image.open(manifest.folder / "training0.png")
    original.convert("RGB").save(manifest.folder / "training3.tif")
    manifest.parts["training"][3]["image"] = "training3.tif"
    with pytest.raises(
        CohortError, match=r"training\[3\] training3\.tif: the same pixels as training\[0\] training0\.png"
    ):
        Cohort.from_manifest(manifest, "training", 8, progress=False)


@pytest.mark.parametrize("part", PARTS)
def test_the_same_pixels_in_two_parts_are_a_leak_whichever_is_read(manifest, part, tmp_path):
    (manifest.folder / "test1.png").write_bytes((manifest.folder / "training0.png").read_bytes())
    for cache_dir in (None, tmp_path / "cache"):
        with pytest.raises(CohortError, match=r"test\[1\] .* training\[0\] training0\.png \(a leak between parts\)"):
            Cohort.from_manifest(manifest, part, 8, cache_dir=cache_dir, progress=False)
    assert not list((tmp_path / "cache").iterdir())


def test_all_unusable_images_of_all_parts_are_listed_at_once(manifest):
    spoil(manifest.folder, "training0.png", "unreadable")
    spoil(manifest.folder, "training1.png", "constant")
    spoil(manifest.folder, "validation0.png", "colour")
    (manifest.folder / "test1.png").write_bytes((manifest.folder / "training2.png").read_bytes())
    for read in (check_images, lambda m, **k: Cohort.from_manifest(m, "validation", 8, **k)):
        with pytest.raises(CohortError) as caught:
            read(manifest, progress=False)
        assert [problem.split()[0] for problem in caught.value.problems] == [
            "training[0]",
            "training[1]",
            "validation[0]",
            "test[1]",
        ]


def test_an_image_whose_contrast_is_lost_in_8_bit_is_refused(manifest):
    faint = 0.5 + np.linspace(0, 1e-4, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(faint).save(manifest.folder / "faint.tif")
    manifest.parts["training"][0]["image"] = "faint.tif"
    with pytest.raises(CohortError, match="constant at 8 bit and 8 px"):
        Cohort.from_manifest(manifest, "training", 8, progress=False)


def test_an_empty_or_unknown_part_is_refused(manifest):
    manifest.parts["validation"] = []
    with pytest.raises(CohortError, match="part 'validation' has no images"):
        Cohort.from_manifest(manifest, "validation", 8)
    with pytest.raises(ValueError, match="training, validation, test"):
        Cohort.from_manifest(manifest, "train", 8)
    with pytest.raises(ValueError, match="size must be positive"):
        Cohort.from_manifest(manifest, "training", 0)
