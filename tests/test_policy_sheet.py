"""The sheet of policies: who is shown, what differs from row to row, and who may be drawn at all."""

import json
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from test_judges import toy_cohort
from tiny import tiny_channel
from tiny_bundle import LATENTS, tiny_anonymizer

from monai_anon.evaluation.evaluation import Evaluation, Places
from monai_anon.evaluation.policy_sheet import GAP, LABEL, LINE, case_names, choose_cases, draw_policies, sheet_rows
from monai_anon.evaluation.subjects import subject_of
from monai_anon.phantoms.writing import SETTINGS_KEY
from monai_anon.readers import to_model_range


@pytest.fixture(scope="module")
def cohort():
    return toy_cohort(20, seed=3)


@pytest.fixture(scope="module")
def networks():
    return tiny_anonymizer()


@pytest.fixture(scope="module")
def rows(networks, cohort):
    chosen = choose_cases(cohort)
    return sheet_rows(networks, to_model_range(cohort.images[torch.from_numpy(chosen)]))


# ---- who is shown ----


def test_both_sides_and_no_finding_are_shown_of_different_people(cohort):
    chosen = choose_cases(cohort)
    assert len(chosen) == len(set(cohort.patient[chosen].tolist())) == 8
    sides = [cohort.entries[row]["side"] for row in chosen]
    assert sides == ["none"] * 2 + ["left"] * 3 + ["right"] * 3
    severity = [cohort.entries[row]["severity"] for row in chosen]
    for three in (severity[2:5], severity[5:]):
        assert three == sorted(three) and three[2] - three[0] > 0.4
    assert choose_cases(cohort, seed=0).tolist() == chosen.tolist() != choose_cases(cohort, seed=1).tolist()


def test_where_nothing_but_the_finding_is_stated_or_people_are_few_there_are_still_cases():
    assert len(choose_cases(toy_cohort(20, columns=False))) == 8
    assert len(choose_cases(toy_cohort(3))) == 3
    healthy = toy_cohort(20)
    healthy.finding = torch.zeros_like(healthy.finding)
    assert len(choose_cases(healthy)) == 8


def test_columns_are_named_by_what_the_entries_state(cohort):
    names = case_names(cohort, choose_cases(cohort))
    assert names[:2] == ["no finding"] * 2 and names[2].startswith("effusion, left, severity 0.")
    assert set(case_names(toy_cohort(20, columns=False), np.arange(20))) == {"no finding", "effusion"}


# ---- what is made of them ----


def test_there_is_a_row_for_each_policy_between_reconstruction_and_counterfactual(rows):
    starts = ["original", "reconstruction", "anonymised, policy latents", "anonymised, policy residual"]
    starts += ["anonymised, policy code of 8", "counterfactual"]
    assert all(row.label.startswith(start) for row, start in zip(rows, starts, strict=True))
    images = [row.images for row in rows]
    assert all(not torch.equal(one, other) for one, other in zip(images, images[1:], strict=False))


def test_a_release_of_the_sheet_is_the_models_own_and_all_have_the_same_draws(networks, rows):
    noise = torch.randn(8, networks.noise_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(rows[2].images, networks(rows[0].images, noise).clamp(-1, 1))
    assert networks.channel.policy == "latents"  # as it was
    equal = sheet_rows(networks, rows[0].images[:1].expand(8, -1, -1, -1))
    again = sheet_rows(networks, rows[0].images[:1].expand(8, -1, -1, -1))
    assert all(torch.equal(one.images, other.images) for one, other in zip(equal, again, strict=True))


def test_the_counterfactual_has_the_medical_latent_of_the_column_it_names(networks, rows):
    z = networks.disentangler.encode(rows[0].images)
    expected = networks.disentangler.decode(z._replace(medical=z.medical[[3, 4, 5, 6, 7, 0, 1, 2]])).detach()
    torch.testing.assert_close(rows[-1].images, expected.clamp(-1, 1))
    assert "3 columns to the right" in rows[-1].label


def test_without_prototypes_the_policies_that_need_them_are_left_out(networks, rows):
    bare = tiny_anonymizer()
    bare.channel = tiny_channel(fitted=False, sizes=LATENTS)
    assert [row.label for row in sheet_rows(bare, rows[0].images)] == [rows[place].label for place in (0, 1, 2, 5)]


# ---- the picture ----


def test_every_pixel_is_a_square_of_its_own_gray(tmp_path, networks, cohort):
    path = draw_policies(networks, cohort, tmp_path, command="monai-anon evaluate")
    drawn = np.asarray(Image.open(path).convert("L")).astype(int)
    times = 192 // 32
    cell = 32 * times + GAP
    head = LINE // 2 + LINE * max(len(textwrap.wrap(name, 20)) for name in case_names(cohort, choose_cases(cohort)))
    assert drawn.shape == (head + 6 * cell, LABEL + 8 * cell)
    first = cohort.images[choose_cases(cohort)[0], 0].numpy().repeat(times, 0).repeat(times, 1)
    assert np.abs(drawn[head : head + 32 * times, LABEL : LABEL + 32 * times] - first).max() <= 4  # 256 colours
    (entry,) = json.loads((tmp_path / "pictures.json").read_text())
    assert entry["file"] == "policies.png" and len(entry["columns"]) == 8 and "policy code of 8" in entry["caption"]


@pytest.mark.parametrize(
    ("generated", "asked", "drawn"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_real_people_are_drawn_only_where_asked(tmp_path, networks, cohort, monkeypatch, generated, asked, drawn):
    monkeypatch.setattr("monai_anon.evaluation.evaluation.draw_figures", lambda *a, **k: [])
    places = Places(str(tmp_path), str(tmp_path), pictures=asked)
    manifest = SimpleNamespace(extra={SETTINGS_KEY: {"seed": 1}} if generated else {})
    run = SimpleNamespace(output_dir=tmp_path, places=places, manifest=manifest, plain_vae=lambda gallery: None)
    scene = SimpleNamespace(test=cohort, training=cohort, seed=0, known=None)
    Evaluation.draw(run, subject_of("tiny", networks), scene)
    assert (tmp_path / "pictures" / "policies.png").is_file() is drawn
    assert (tmp_path / "pictures").exists() is drawn
