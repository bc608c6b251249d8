"""The search finds what all similarities at once would, in little memory; the gallery's file is its owner's alone."""

import os
import stat

import pytest
import torch

from monai_anon import gallery_search
from monai_anon.gallery_search import GalleryError, OtherModelError, SearchableGallery, unit
from monai_anon.identities import Gallery


@pytest.fixture
def gallery(monkeypatch):
    """100 vectors of 13 patients, searched in blocks that end in the middle of patients."""
    monkeypatch.setattr(gallery_search, "_ASKED", 4)
    monkeypatch.setattr(gallery_search, "_ROWS", 17)
    return SearchableGallery.of(Gallery(torch.randn(100, 8) * 5, torch.arange(100) * 3 % 13), "aa")


def test_blocks_find_what_all_similarities_at_once_do(gallery):
    asked = torch.randn(11, 8)
    similarity = unit(asked) @ gallery.vectors.T
    torch.testing.assert_close(gallery.nearest(asked), similarity.amax(1))


def test_the_nearest_other_and_the_own_patient_are_those_of_a_loop(gallery):
    asked, codes = torch.randn(15, 8), torch.arange(15) - 1  # -1 and 13 are not there
    similarity, own = unit(asked) @ gallery.vectors.T, gallery.patient == codes[:, None]
    other = similarity.masked_fill(own, -torch.inf).amax(1)
    torch.testing.assert_close(gallery.nearest(asked, codes), other)
    torch.testing.assert_close(gallery.own(asked, codes), similarity.masked_fill(~own, -torch.inf).amax(1))
    assert gallery.own(asked, codes)[[0, 14]].tolist() == [-torch.inf] * 2


def test_no_block_is_larger_than_it_may_be_however_many_are_asked_for(gallery, monkeypatch):
    seen, maximum = [], torch.Tensor.amax
    monkeypatch.setattr(torch.Tensor, "amax", lambda self, *a: seen.append(self.numel()) or maximum(self, *a))
    gallery.nearest(torch.randn(50, 8))
    assert len(seen) == 13 * 6 and max(seen) <= 4 * 17


def test_what_has_no_direction_is_near_nobody_and_far_from_nobody(gallery):
    found = gallery.nearest(torch.stack([torch.zeros(8), torch.full((8,), torch.nan), torch.ones(8)]))
    assert found.isnan().tolist() == [True, True, False]


def test_it_shows_counts_only(gallery):
    assert repr(gallery) == str(gallery) == f"{gallery}" == "SearchableGallery(100 images of 13 patients)"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda v, p: (v * 2, p), "length 1"),
        (lambda v, p: (v.index_fill(0, torch.tensor([1]), torch.nan), p), "length 1"),
        (lambda v, p: (v, p.flip(0)), "ascend"),
        (lambda v, p: (v, p[1:]), "one a vector"),
        (lambda v, p: (v[:0], p[:0]), "not float32"),
    ],
)
def test_what_is_no_gallery_is_refused(gallery, change, reason):
    with pytest.raises(GalleryError, match=reason):
        SearchableGallery(*change(gallery.vectors, gallery.patient), "aa")


# ---- The file ----


def test_the_file_comes_back_whole_and_only_its_owner_reads_it(gallery, tmp_path):
    previous = os.umask(0)
    try:
        path = gallery.write(tmp_path / "site" / "gallery.safetensors")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and list(path.parent.iterdir()) == [path]
    again = SearchableGallery.read(path, "aa")
    assert torch.equal(again.vectors, gallery.vectors) and torch.equal(again.patient, gallery.patient)
    assert again.digest() == gallery.digest()
    assert again.digest() != SearchableGallery(gallery.vectors, gallery.patient + 1, "aa").digest()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_can_open_is_refused(gallery, tmp_path, mode):
    path = gallery.write(tmp_path / "gallery.safetensors")
    path.chmod(mode)
    with pytest.raises(GalleryError, match=f"permissions {mode:o}.*chmod 600"):
        SearchableGallery.read(path, "aa")


def test_a_file_of_another_model_is_refused(gallery, tmp_path):
    path = gallery.write(tmp_path / "gallery.safetensors")
    with pytest.raises(OtherModelError, match="made with the weights aa, not bb"):
        SearchableGallery.read(path, "bb")


def test_a_missing_a_damaged_and_another_file_are_refused(gallery, tmp_path):
    path = gallery.write(tmp_path / "gallery.safetensors")
    with pytest.raises(GalleryError, match="cannot be read"):
        SearchableGallery.read(tmp_path / "none", "aa")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(GalleryError, match="damaged"):
        SearchableGallery.read(path, "aa")
    path.write_bytes(gallery_search.save({"vectors": gallery.vectors}))
    with pytest.raises(GalleryError, match="no gallery"):
        SearchableGallery.read(path, "aa")
