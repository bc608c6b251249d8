"""Pictures of the paper: what is drawn where, of whom, and that the same seed gives the same picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_judges import toy_cohort
from tiny import tiny_channel
from tiny_bundle import LATENTS, tiny_anonymizer

from monai_anon.evaluation import figures, metrics
from monai_anon.evaluation.figures import Column, Picture, Stand, choose_people, draw_columns, draw_figures
from monai_anon.identities import Gallery
from monai_anon.networks import IdentityVAE


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    generator = torch.Generator().manual_seed(3)
    return Gallery(torch.randn(40, LATENTS[0], generator=generator), torch.arange(40) // 4)


@pytest.fixture(scope="module")
def stand(gallery: Gallery) -> Stand:
    plain = IdentityVAE(LATENTS[0], latent_size=6, hidden=8)
    return Stand(tiny_anonymizer(), plain, toy_cohort(), gallery, seed=1)


def titles(columns: list[Column]) -> dict[str, torch.Tensor]:
    return {column.title: column.images for column in columns}


# ---- who is shown ----


@pytest.mark.parametrize("count", [1, 5, 6])
def test_people_are_different_and_half_of_them_have_the_finding(count: int) -> None:
    cohort = toy_cohort()
    people = choose_people(cohort.patient.numpy(), cohort.finding.numpy(), count, seed=4)
    assert len(people) == len(set(cohort.patient[people].tolist())) == count
    assert cohort.finding[people].tolist() == [0] * (count - count // 2) + [1] * (count // 2)


def test_where_one_half_is_missing_the_other_has_more_and_nobody_is_shown_twice() -> None:
    patients = np.repeat(np.arange(4), 3)
    people = choose_people(patients, np.zeros(12, dtype=int), 6)
    assert sorted(patients[people]) == [0, 1, 2, 3]


def test_another_seed_shows_other_people_and_the_same_seed_the_same() -> None:
    cohort = toy_cohort()
    of = [choose_people(cohort.patient.numpy(), cohort.finding.numpy(), 6, seed).tolist() for seed in (0, 0, 1)]
    assert of[0] == of[1] != of[2]


def test_targets_are_other_people_with_the_other_finding(stand: Stand) -> None:
    cohort = toy_cohort()
    rows = [[torch.equal(image, other) for other in cohort.images / 127.5 - 1].index(True) for image in stand.first]
    assert (cohort.patient[rows] != cohort.patient[stand.people]).all()
    assert (cohort.finding[rows] != cohort.finding[stand.people]).all()


# ---- what is drawn ----


def test_figure_4_compares_replaced_twice_with_replaced_once_and_prints_their_ssim(stand: Stand) -> None:
    columns = figures.figure_4(stand)
    shown = titles(columns)
    first = stand.decode(stand.encode(stand.original)._replace(medical=stand.encode(stand.first).medical))
    twice = stand.decode(stand.encode(first)._replace(medical=stand.encode(stand.last).medical))
    once = stand.decode(stand.encode(stand.original)._replace(medical=stand.encode(stand.last).medical))
    assert torch.equal(shown["then of 2 (twice)"], twice) and torch.equal(shown["of 2 (once)"], once)
    assert torch.equal(columns[-1].images, (twice - once).abs())
    assert list(columns[-1].notes) == [f"SSIM {value:.3f}" for value in metrics.ssim(twice, once)]


def test_figure_5_replaces_one_latent_by_the_targets(stand: Stand) -> None:
    shown = titles(figures.figure_5(stand))
    z = stand.encode(stand.original)
    assert torch.equal(shown["reconstruction"], stand.decode(z))
    assert torch.equal(shown["medical replaced"], stand.decode(z._replace(medical=stand.encode(stand.first).medical)))
    swapped = stand.decode(z._replace(identity=stand.encode(stand.first).identity))
    assert torch.equal(shown["identity replaced"], swapped)
    released = stand.model(stand.original, torch.randn(6, 6, generator=torch.Generator().manual_seed(1))).detach()
    torch.testing.assert_close(shown["anonymised"], released.clamp(-1, 1))


def test_figure_6_gives_both_vaes_the_same_noise(stand: Stand, gallery: Gallery) -> None:
    shown = titles(figures.figure_6(stand))
    assert not torch.equal(shown["plain VAE"], shown["VAE, privacy loss"])
    twins = Stand(stand.model, stand.model.identity_vae, toy_cohort(), gallery, seed=1)
    shown = titles(figures.figure_6(twins))
    assert torch.equal(shown["plain VAE"], shown["VAE, privacy loss"])


def test_figure_7_leaves_out_averages_that_the_gallery_is_too_small_for(stand: Stand, gallery: Gallery) -> None:
    assert list(titles(figures.figure_7(stand))) == ["original", "average of 6", "average of all"]  # 10 patients
    few = Gallery(gallery.identity[:20], gallery.patient[:20])
    assert list(titles(figures.figure_7(Stand(stand.model, stand.plain_vae, toy_cohort(), few, 1))))[1:] == [
        "average of all"
    ]


def test_an_average_of_all_gives_everybody_one_identity(stand: Stand) -> None:
    from monai_anon.identities import AveragedIdentities

    identity = stand.identity(AveragedIdentities(stand.gallery, None, True))
    torch.testing.assert_close(identity, identity[:1].expand_as(identity))


def test_the_change_is_what_the_counterfactual_adds_to_the_anonymised_image(stand: Stand) -> None:
    columns = figures.explanation(stand)
    shown = titles(columns)
    assert list(shown)[:4] == ["original", "reconstruction", "anonymised", "counterfactual"]
    assert columns[-1].kind == "change"
    assert torch.equal(columns[-1].images, shown["counterfactual"] - shown["anonymised"])
    assert columns[-1].images.abs().max() > 0


def test_the_explanation_is_of_what_the_models_policy_releases(gallery: Gallery) -> None:
    model = tiny_anonymizer()
    model.channel = tiny_channel("code", sizes=LATENTS, prototypes=4)
    coded = Stand(model, IdentityVAE(LATENTS[0], latent_size=6, hidden=8), toy_cohort(), gallery, seed=1)
    for own in (coded.z, coded.z_first):
        z = coded.released(own)
        known = model.channel.codebook.prototypes[1]
        assert all((known == one).all(1).any() for one in z.medical) and not torch.equal(z.residual, own.residual)
    shown = titles(figures.explanation(coded))
    assert torch.equal(shown["anonymised"], coded.decode(coded.released(coded.z)))
    finding, other = (model.disentangler.classify(own.medical).argmax(1) for own in (coded.z, coded.z_first))
    alike = finding == other  # who is drawn has the finding; beside it the draws are the same
    assert alike.any()
    identity, first = (coded.released(own).identity[alike] for own in (coded.z, coded.z_first))
    assert torch.equal(identity, first)


# ---- the files ----


def gray(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L")).astype(int)


def test_gray_has_a_fixed_scale_whatever_the_images_hold(tmp_path) -> None:
    """A flat image of 0 is middle gray; scaled to its own range it would be black."""
    picture = gray(draw_columns([Column("flat", torch.zeros(1, 1, 8, 8))], tmp_path / "flat.png"))
    middle = picture[picture.shape[0] // 2, picture.shape[1] // 2]
    assert abs(middle - 128) <= 2
    dark = gray(draw_columns([Column("a", torch.full((1, 1, 8, 8), -1.0))], tmp_path / "dark.png"))
    assert dark[dark.shape[0] // 2, dark.shape[1] // 2] == 0


def test_rows_are_people_and_columns_are_what_was_made_of_them(tmp_path) -> None:
    light, dark = torch.ones(1, 1, 8, 8), -torch.ones(1, 1, 8, 8)
    columns = [Column("a", torch.cat([light, dark])), Column("b", torch.cat([dark, dark]))]
    picture = gray(draw_columns(columns, tmp_path / "grid.png"))
    height, width = picture.shape
    cells = [[picture[int(height * y), int(width * x)] for x in (0.25, 0.75)] for y in (0.35, 0.75)]
    assert cells == [[255, 0], [0, 0]]


def test_more_is_red_less_is_blue_and_no_change_is_white(tmp_path) -> None:
    images = torch.stack([torch.full((1, 8, 8), value) for value in (0.9, -0.9, 0.0)])
    columns = [Column(str(i), image[None], "change") for i, image in enumerate(images)]
    picture = np.asarray(Image.open(draw_columns(columns, tmp_path / "x.png")).convert("RGB")).astype(int)
    more, less, none = (picture[int(picture.shape[0] * 0.6), int(picture.shape[1] * x)] for x in (1 / 6, 0.5, 5 / 6))
    assert more[0] > more[2] + 50 and less[2] > less[0] + 50 and none.min() > 240


def test_colour_images_are_drawn_in_colour(tmp_path) -> None:
    red = torch.tensor([1.0, -1.0, -1.0])[None, :, None, None].expand(1, 3, 8, 8)
    picture = np.asarray(Image.open(draw_columns([Column("red", red)], tmp_path / "x.png")).convert("RGB"))
    assert picture[int(picture.shape[0] * 0.6), picture.shape[1] // 2].tolist() == [255, 0, 0]


@pytest.mark.parametrize("columns", [[], [Column("a", torch.zeros(0, 1, 8, 8))]])
def test_a_picture_of_nothing_is_refused(columns: list[Column], tmp_path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        draw_columns(columns, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_columns_of_different_lengths_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        draw_columns([Column("a", torch.zeros(1, 1, 8, 8)), Column("b", torch.zeros(2, 1, 8, 8))], tmp_path / "x.png")


def test_all_figures_are_written_the_same_twice_and_listed_with_their_command(tmp_path, stand: Stand) -> None:
    for folder in ("one", "two"):
        arguments = stand.model, stand.plain_vae, toy_cohort(), stand.gallery, tmp_path / folder
        paths = draw_figures(*arguments, numbers=(4, 5, 6, 7, 0), seed=2, command="monai-anon report runs/a")
    assert [path.name for path in paths] == [*(f"figure_{n}.png" for n in (4, 5, 6, 7)), "explanation.png"]
    for path in paths:
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes()
    entries = json.loads((tmp_path / "two" / "pictures.json").read_text())
    assert [entry["file"] for entry in entries] == [path.name for path in paths]
    assert all(set(entry) == {"file", "title", "columns", "caption", "command"} for entry in entries)
    assert all(entry["command"] == "monai-anon report runs/a" and entry["columns"] for entry in entries)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {"pictures.json", *(path.name for path in paths)}


def test_a_picture_drawn_again_replaces_its_entry_and_keeps_the_others(tmp_path) -> None:
    old, other, new = (Picture(file, title, ["a"], "", "") for file, title in (("x", "old"), ("y", "y"), ("x", "new")))
    figures.write_pictures_json([old, other], tmp_path)
    path = figures.write_pictures_json([new], tmp_path)
    assert {(entry["file"], entry["title"]) for entry in json.loads(path.read_text())} == {("x", "new"), ("y", "y")}


def test_a_figure_that_does_not_exist_is_refused_with_those_that_do(tmp_path, stand: Stand) -> None:
    with pytest.raises(ValueError, match=r"\[3\].*\[0, 4, 5, 6, 7\]"):
        draw_figures(stand.model, stand.plain_vae, toy_cohort(), stand.gallery, tmp_path, numbers=(3,))


def test_drawing_leaves_matplotlib_and_the_global_generator_alone(tmp_path, stand: Stand) -> None:
    import matplotlib.pyplot as plt

    state = torch.get_rng_state()
    draw_figures(stand.model, stand.plain_vae, toy_cohort(), stand.gallery, tmp_path, numbers=(5, 0))
    assert plt.get_fignums() == []
    assert torch.equal(state, torch.get_rng_state())
