"""Subsets have exactly the asked images of whole patients; tables are read whole or refused."""

import importlib
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from monai_anon.manifest import PARTS, ManifestError


@pytest.fixture
def picking(scripts):
    return importlib.import_module("preparation.picking")


@pytest.fixture
def tables(scripts):
    return importlib.import_module("preparation.tables")


def entries_of(patients=300, share=0.3, seed=0):
    """Patients with one to nine images, each with its own inclination to the finding."""
    generator = np.random.default_rng(seed)
    return [
        {"image": f"{patient}_{number}.png", "patient": str(patient), "finding": int(generator.random() < inclination)}
        for patient in range(patients)
        for inclination in generator.beta(share, 1 - share, 1)
        for number in range(generator.integers(1, 10))
    ]


def numbers(parts):
    """Images, patients and share of the finding of each part."""
    return {
        part: (len(entries), len({entry["patient"] for entry in entries}), np.mean([e["finding"] for e in entries]))
        for part, entries in parts.items()
    }


def test_a_subset_has_the_asked_images_patients_and_share(picking):
    entries = entries_of()
    parts = picking.pick_parts([(PARTS, entries)], picking.Subset((400, 40, 60), (80, 9, 11), 0.5))
    found = numbers(parts)
    assert [found[part][:2] for part in PARTS] == [(400, 80), (40, 9), (60, 11)]
    assert all(found[part][2] == pytest.approx(0.5, abs=0.02) for part in PARTS)


def test_patients_are_whole_and_in_one_part(picking):
    entries = entries_of()
    parts = picking.pick_parts([(PARTS, entries)], picking.Subset((400, 40, 60), (80, 9, 11)))
    there = Counter(entry["patient"] for entry in entries)
    taken = [Counter(entry["patient"] for entry in parts[part]) for part in PARTS]
    assert all(there[patient] == count for part in taken for patient, count in part.items())
    assert not (set(taken[0]) & set(taken[1]) or set(taken[0]) & set(taken[2]) or set(taken[1]) & set(taken[2]))


def test_a_seed_decides_the_subset_and_the_order_of_rows_does_not(picking):
    entries = entries_of()

    def patients(entries, seed):
        subset = picking.Subset((400, 40, 60), (80, 9, 11), 0.5, seed)
        parts = picking.pick_parts([(PARTS, entries)], subset)
        return {part: sorted({entry["patient"] for entry in parts[part]}) for part in PARTS}

    assert patients(entries, 1) == patients(entries[::-1], 1) != patients(entries, 2)


def test_a_subset_of_those_with_most_images_is_found(picking):
    """The paper's celebrities are nearly those with the most images: parts picked in turn would not come out."""
    sizes = sorted((len(list(group)) for group in grouped(entries_of()).values()), reverse=True)
    images = sum(sizes[:60])
    subset = picking.Subset((images - 80, 40, 40), (50, 5, 5), None)
    found = numbers(picking.pick_parts([(PARTS, entries_of())], subset))
    assert [found[part][0] for part in PARTS] == [images - 80, 40, 40]
    assert sum(found[part][1] for part in PARTS) == 60


def grouped(entries):
    """Entries by patient."""
    groups = {}
    for entry in entries:
        groups.setdefault(entry["patient"], []).append(entry)
    return groups


def test_images_are_exact_where_the_number_of_patients_cannot_be(picking):
    entries = [{"image": f"{i}", "patient": str(i // 2), "finding": i % 2} for i in range(200)]
    found = numbers(picking.pick_parts([(PARTS, entries)], picking.Subset((60, 10, 20), (20, 9, 3), None)))
    assert [found[part][:2] for part in PARTS] == [(60, 30), (10, 5), (20, 10)]
    with pytest.raises(ManifestError, match=r"exactly 91 images were found, the nearest have 9[02]"):
        picking.pick_parts([(PARTS, entries)], picking.Subset((61, 10, 20), (30, 5, 10), None))


def test_parts_come_from_their_own_pool(picking):
    entries = entries_of()
    early = [entry for entry in entries if int(entry["patient"]) < 200]
    late = [entry for entry in entries if int(entry["patient"]) >= 200]
    parts = picking.pick_parts([(PARTS[:2], early), (PARTS[2:], late)], picking.Subset((400, 40, 60), (80, 9, 11)))
    assert all(int(entry["patient"]) >= 200 for entry in parts["test"])
    assert all(int(entry["patient"]) < 200 for part in PARTS[:2] for entry in parts[part])


def test_a_smaller_dataset_is_refused_with_how_many_there_are_or_taken_whole(picking):
    entries = entries_of(30)
    pools = [(PARTS[:2], entries[:50]), (PARTS[2:], entries[50:60])]
    with pytest.raises(
        ManifestError, match=r"training \+ validation: 440 images of 89 patients are asked, 50 usable"
    ) as it:
        picking.pick_parts(pools, picking.Subset((400, 40, 60), (80, 9, 11)))
    assert "test: 60 images of 11 patients are asked, 10 usable images" in str(it.value)
    assert "--all" in str(it.value)
    parts = picking.pick_parts([(PARTS, entries)], picking.Subset((400, 40, 60), (80, 9, 11), take_all=True))
    assert sum(map(len, parts.values())) == len(entries)
    assert all(parts[part] for part in PARTS)


@pytest.mark.parametrize("take_all", [False, True])
def test_a_closed_set_divides_images_and_has_everybody_in_training(picking, take_all):
    entries = entries_of(40)
    count = len(entries)
    images = (count - 60, 20, 40) if not take_all else (70, 10, 20)
    parts = picking.closed_set_parts(entries, picking.Subset(images, (20, 10, 10), None, take_all=take_all))
    assert sum(map(len, parts.values())) == count
    assert len({entry["image"] for part in PARTS for entry in parts[part]}) == count
    assert {entry["patient"] for entry in parts["training"]} == {str(number) for number in range(40)}
    share = np.mean([entry["finding"] for entry in entries])
    assert all(found[2] == pytest.approx(share, abs=0.03) for found in numbers(parts).values())


def test_a_closed_set_may_be_smaller_than_the_dataset(picking):
    parts = picking.closed_set_parts(entries_of(40), picking.Subset((60, 10, 20), (10, 3, 7), None))
    assert [len(parts[part]) for part in PARTS] == [60, 10, 20]
    assert {entry["patient"] for entry in parts["test"]} <= {entry["patient"] for entry in parts["training"]}
    assert len({entry["patient"] for entry in parts["training"]}) == 20
    with pytest.raises(ManifestError, match="no usable image is left"):
        picking.closed_set_parts([], picking.Subset((60, 10, 20), (10, 3, 7), take_all=True))
    with pytest.raises(ManifestError, match="15 training images cannot be of all 20 patients"):
        picking.closed_set_parts(entries_of(40), picking.Subset((15, 45, 30), (10, 3, 7), None))


def test_rows_longer_than_the_header_are_refused_and_move_no_column(tables, tmp_path):
    (tmp_path / "t.csv").write_text("a,b,\n1,2,\n3,4,\n")  # as NIH's table ends its rows
    assert tables.read_table(tmp_path / "t.csv")["a"].tolist() == ["1", "3"]
    (tmp_path / "t.csv").write_text("a,b\n1,2,3\n3,4,5\n")
    with pytest.raises(ManifestError, match="no CSV table"):
        tables.read_table(tmp_path / "t.csv")


def test_a_sheet_is_read_with_openpyxl_and_refused_with_the_way_out_without(tables, tmp_path, monkeypatch):
    (tmp_path / "t.xlsx").write_bytes(b"")

    def missing(*args, **options):
        raise ImportError("openpyxl")

    monkeypatch.setattr(pd, "read_excel", missing)
    with pytest.raises(ManifestError, match="needs openpyxl; install it, or save the sheet as CSV"):
        tables.read_table(tmp_path / "t.xlsx")
    sheet = pd.DataFrame({" Person ": ["0001 ", "2"], 7: ["a", ""]})
    monkeypatch.setattr(pd, "read_excel", lambda *args, **options: sheet)
    assert tables.read_table(Path("t.xlsx")).to_dict("records") == [
        {"Person": "0001", "7": "a"},
        {"Person": "2", "7": ""},
    ]
