"""What every kind of generated cohort owes: the same contract, whatever is drawn."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from monai_anon.manifest import load_manifest
from monai_anon.phantoms import PHANTOMS, load_phantom, phantom_of

FEW = {"images": (40, 0, 0), "patients": (10, 0, 0)}


@pytest.fixture(scope="module", params=list(PHANTOMS))
def phantom(request):
    return load_phantom(request.param)


def test_a_phantom_is_found_by_its_name_and_by_its_table(phantom):
    assert load_phantom(phantom.name) is phantom
    table = phantom.factors(0, **FEW)
    assert phantom_of(table) is phantom
    assert phantom_of(table.drop(columns=phantom.columns[0])) is None


def test_an_unknown_kind_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="generated cohort 'brain'; known are chest"):
        load_phantom("brain")


def test_factors_are_named_by_group_and_the_finding_is_the_medical_one(phantom):
    table = phantom.factors(0, **FEW)
    others = {"part", "patient", "image", "finding"}
    assert all(name.startswith(("id_", "med_", "res_")) for name in set(table) - others)
    assert set(phantom.columns) == set(table) - others
    assert table["finding"].equals(table["med_present"]) and table["finding"].nunique() == 2
    assert (table.query("finding == 0")[[name for name in table if name.startswith("med_")]] == 0).all(axis=None)


def test_an_image_depends_on_its_own_row_alone_and_severity_0_is_absent(phantom):
    table = phantom.factors(1, **FEW)
    images = phantom.render(table, 32)
    assert images.dtype == np.uint8 and images.shape[:3] == (40, 32, 32)
    assert np.array_equal(images[[17]], phantom.render(table.iloc[[17]], 32))
    ill = table[table["finding"] == 1]
    absent = ill.assign(**{name: 0 for name in table if name.startswith("med_")})
    assert np.array_equal(phantom.render(ill.assign(med_severity=0.0), 32), phantom.render(absent, 32))


def test_every_protocol_says_who_is_in_which_part(phantom, tmp_path):
    for name, protocol in phantom.protocols.items():
        images, patients = phantom.part_sizes("24,8,8", "4,4,4", name)
        path = phantom.write_cohort(tmp_path / name, 0, 32, images, patients, progress=False, protocol=name)
        manifest = load_manifest(path)
        people = [{entry["patient"] for entry in entries} for entries in manifest.parts.values()]
        assert manifest.closed_set == protocol.closed_set
        assert len(set.union(*people)) == (4 if protocol.closed_set else 12)
        assert pd.read_csv(manifest.folder / "factors.csv")["image"].is_unique
    with pytest.raises(ValueError, match=f"'open': {phantom.name} phantoms have "):
        phantom.factors(protocol="open")


def test_a_sheet_has_a_person_a_row(phantom, scripts, tmp_path):
    from draw_phantom_sheet import main

    main(phantom.name, tmp_path / "sheet.png", size=32, people=2, seed=0)
    assert Image.open(tmp_path / "sheet.png").size == (6 * 32, 2 * 32)
