"""Exact factors on tiny phantoms with known answers: none, a constant, a stranger with the same finding, an oracle."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from monai_anon.cohort import Cohort
from monai_anon.evaluation.contents.factors import (
    GROUPS,
    FactorReader,
    aligned_factors,
    factor_tables,
    factors,
    known_factors,
    load_factors,
    swap_consistency,
    weighted_r2,
)
from monai_anon.evaluation.judge_networks import MedicalJudge, Verifier
from monai_anon.evaluation.judges import Judges, JudgeSchedule
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject
from monai_anon.networks import Latents
from monai_anon.phantoms.chest import CLASSES, SIDES, render, sample_factors, write_cohort
from monai_anon.phantoms.chest_render import COLUMNS
from monai_anon.readers import to_model_range, to_uint8

SIZE = 32
PLANES = (8, 16, 16, 32)


def phantom_cohort(table):
    """The cohort of a part's table."""
    entries = [
        {"image": row.image, "patient": row.patient, "finding": row.finding,
         "side": SIDES[int(row.med_side)], "severity": row.med_severity}
        for row in table.itertuples()
    ]  # fmt: skip
    _, patient = np.unique(table["patient"], return_inverse=True)
    images = torch.from_numpy(render(table, SIZE))[:, None]
    return Cohort(
        images, torch.from_numpy(patient), torch.tensor(table["finding"].to_numpy()), entries, CLASSES, "tiny"
    )


def phantom_scene(images=(700, 100, 100), patients=(175, 25, 25), steps=120):
    """Phantoms of 32 pixels with their factors, and judges that have learned nothing."""
    table = sample_factors(3, images, patients)
    tables = {part: of_part.reset_index(drop=True) for part, of_part in table.groupby("part")}
    cohorts = [phantom_cohort(tables[part]) for part in ("training", "validation", "test")]
    judges = Judges(Verifier(1, (4,) * 4), MedicalJudge(1, (4,) * 4, 2, 2), list(CLASSES), ["left", "right"])
    schedule = JudgeSchedule(batch_size=64, planes=PLANES, checks=2)
    scene = Scene(*cohorts, judges.to("cpu"), steps=steps, schedule=schedule, n_bootstrap=20, progress=False)
    scene.factors = tables
    return scene


class Oracle:
    """An encoder that knows the factors of the images it is shown, and a decoder that renders them."""

    def __init__(self, tables):
        table = pd.concat(tables.values())
        images = render(table, SIZE)
        values = [torch.from_numpy(table[list(names)].to_numpy(np.float64)) for names in self.columns()]
        self.codes = {image.tobytes(): Latents(*row) for image, *row in zip(images, *values)}

    @staticmethod
    def columns():
        return [[name for name in COLUMNS if name.startswith(prefix)] for prefix in GROUPS]

    def encode(self, images):
        rows = [self.codes[image.numpy().tobytes()] for image in to_uint8(images)[:, 0]]
        return Latents(*(torch.stack(column) for column in zip(*rows)))

    def decode(self, latents):
        table = pd.DataFrame(
            torch.cat(latents, dim=1).numpy(), columns=[name for group in self.columns() for name in group]
        )
        return to_model_range(torch.from_numpy(render(table, SIZE)))[:, None]


def oracle_subject(scene, oracle=None, weights="oracle"):
    networks = SimpleNamespace(disentangler=oracle or Oracle(scene.factors))
    return Subject("oracle", lambda images, generator: images, weights, networks)


def stranger_subject(scene):
    """Renders somebody else with the finding and the pose of the original: what an anonymizer should do."""
    oracle, draw = Oracle(scene.factors), np.random.default_rng(0)
    everyone = torch.stack([code.identity for code in oracle.codes.values()])

    def anonymise(images, generator):
        z = oracle.encode(images)
        return oracle.decode(z._replace(identity=everyone[draw.integers(0, len(everyone), len(images))]))

    return Subject("stranger", anonymise, "stranger")


NONE = Subject("none", lambda images, generator: images, "none")
CONSTANT = Subject("constant", lambda images, generator: torch.zeros_like(images), "constant")


@pytest.fixture(scope="module")
def scene():
    return phantom_scene()


def values(rows, method=None):
    return {row.metric: row.value for row in rows if method in (None, row.method)}


# ---- tables ----


def test_a_cohorts_table_is_found_in_its_folder_and_put_in_the_order_of_its_images(tmp_path):
    path = write_cohort(tmp_path / "chest", images=(12, 4, 4), patients=(4, 2, 2), size=32, progress=False)
    whole = Cohort.from_manifest(path, "training", 32, progress=False)
    turned = Cohort(
        whole.images.flip(0), whole.patient.flip(0), whole.finding.flip(0), whole.entries[::-1], whole.classes
    )
    tables = factor_tables(path.parent, {"training": turned, "validation": None})
    assert list(tables) == ["training"]
    np.testing.assert_array_equal(render(tables["training"], 32), turned.images[:, 0].numpy())


def test_images_without_a_row_or_with_two_are_refused(scene):
    table = scene.factors["test"]
    with pytest.raises(ValueError, match="1 of 100 images of tiny have no row"):
        aligned_factors(table.iloc[1:], scene.test)
    with pytest.raises(ValueError, match="1 images have more than one row"):
        aligned_factors(pd.concat([table, table.iloc[:1]]), scene.test)


def test_a_folder_of_real_images_has_no_factors(tmp_path, scene):
    assert factor_tables(tmp_path, {"test": scene.test}) is None
    with pytest.raises(FileNotFoundError, match="only generated cohorts"):
        load_factors(tmp_path)


def test_seeds_and_constants_are_no_factors_to_be_read(scene):
    known = known_factors(scene.factors["training"])
    assert {"id_heart_x", "med_side", "res_noise", "res_gamma"} <= set(known.names)
    assert not {"id_vessel_seed", "res_noise_seed", "id_vessel_spread"} & set(known.names)
    standardised = known.of(scene.factors["training"])
    np.testing.assert_allclose(standardised.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(standardised.std(axis=0), 1, atol=1e-9)
    assert [known.names[i] for i in known.members("medical")] == ["med_present", "med_side", "med_severity"]


# ---- R^2 ----


def test_r2_is_one_for_the_truth_zero_for_the_training_mean_and_negative_for_worse():
    rng = np.random.default_rng(0)
    true, weights = 0.3 + rng.normal(size=(50, 2)), rng.integers(1, 4, 50).astype(float)
    np.testing.assert_allclose(weighted_r2(true, true, weights), 1)
    np.testing.assert_allclose(weighted_r2(np.zeros_like(true), true, weights), 0)
    assert (weighted_r2(-true, true, weights) < 0).all()
    assert np.isnan(weighted_r2(true, np.zeros_like(true), weights)).all()


def test_a_weight_counts_as_often_as_a_copy():
    rng = np.random.default_rng(0)
    true, weights = rng.normal(size=(30, 3)), rng.integers(0, 4, 30)
    read = true + rng.normal(size=true.shape)
    copies = np.repeat(np.arange(30), weights)
    once = weighted_r2(read[copies], true[copies], np.ones(len(copies)))
    np.testing.assert_allclose(weighted_r2(read, true, weights.astype(float)), once)


# ---- what is left ----


def test_untouched_images_show_factors_of_all_three_groups(scene):
    found = values(factors(NONE, scene))
    assert found["factor_med_severity_r2"] > 0.4 and found["factors_medical_r2"] > 0.35
    assert found["factor_res_shift_x_r2"] > 0.3 and found["factors_residual_r2"] > 0.1
    assert found["factor_id_half_width_r2"] > 0.35 and found["factor_id_habitus_r2"] > 0.2


def test_a_constant_image_shows_no_factor():
    rows = factors(CONSTANT, phantom_scene((60, 20, 30), (15, 5, 8), steps=10))
    assert len(rows) == 38 + 3 + 9 + 3 and max(row.value for row in rows) <= 1e-6


def test_a_stranger_with_the_same_finding_shows_the_finding_and_no_identity(scene):
    found = values(factors(stranger_subject(scene), scene))
    assert found["factors_medical_r2"] > 0.4 and found["factor_res_shift_x_r2"] > 0.3
    assert found["factors_identity_r2"] <= 0 and found["factor_id_half_width_r2"] < 0.1


def test_the_regressor_learns_how_released_images_look(scene):
    mirrored = Subject("mirrored", lambda images, generator: images.flip(-1), "mirrored")
    assert (
        values(factors(mirrored, scene))["factor_med_side_r2"] > 0.3
    )  # who knows real images only takes left for right


def test_without_exact_factors_there_is_nothing_to_say(scene):
    bare = SimpleNamespace(factors=None)
    assert factors(NONE, bare) == [] and swap_consistency(oracle_subject(scene), bare) == []


def test_what_was_learned_by_heart_is_taken_back_on_the_validation_part():
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (400, 1, 2, 2)).astype(np.uint8))
    pixels = images.double().flatten(1).numpy() / 127.5 - 1
    pixels -= pixels.mean(axis=0)
    true = np.stack([3 * pixels[:, 0], rng.normal(size=400), -pixels[:, 2]], axis=1)
    first_three = torch.nn.Linear(4, 3, bias=False)
    first_three.weight.data = torch.eye(4)[:3]
    reader = FactorReader(torch.nn.Sequential(torch.nn.Flatten(), first_three), 3, torch.device("cpu"))
    reader.calibrate(images, true)
    read = reader(images)
    np.testing.assert_allclose(read[:, 0], true[:, 0], atol=1e-5)
    assert np.abs(read[:, 1]).max() < 0.3  # unknown: about the mean
    np.testing.assert_array_equal(read[:, 2], 0)  # upside down is no knowledge


# ---- swaps ----


def test_an_oracles_swaps_are_read_as_well_as_its_reconstructions(scene):
    rows = swap_consistency(oracle_subject(scene), scene)
    plain = values(rows, "reconstruction")
    for method in ("identity replacement", "medical replacement"):
        swapped = values(rows, method)
        assert swapped["swap_med_severity"] > 0.6 and swapped["swap_id_habitus"] > 0.45
        for group in GROUPS.values():
            assert swapped[f"swap_{group}"] > 0.8 * plain[f"swap_{group}"] > 0.05


def test_an_identity_latent_that_carries_the_finding_is_seen(scene):
    class Leaky(Oracle):
        """Everything but pose lies in the identity latent."""

        def encode(self, images):
            z = super().encode(images)
            return Latents(torch.cat([z.identity, z.medical], dim=1), torch.zeros_like(z.medical), z.residual)

        def decode(self, z):
            return super().decode(Latents(z.identity[:, :-3], z.identity[:, -3:], z.residual))

    rows = swap_consistency(oracle_subject(scene, Leaky(scene.factors), "leaky"), scene)
    assert values(rows, "identity replacement")["swap_med_present"] < -0.45  # the target has the other finding
    assert values(rows, "medical replacement")["swap_med_present"] < -0.45
    assert values(rows, "identity replacement")["swap_id_habitus"] > 0.45


def test_the_regressor_of_real_images_is_trained_once(scene, monkeypatch):
    values(factors(NONE, scene))

    def refuse(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr("monai_anon.evaluation.contents.factors.train_factor_reader", refuse)
    assert swap_consistency(oracle_subject(scene), scene)
