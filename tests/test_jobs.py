"""What a run reads and writes is settled before it starts, and an original is never in danger."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import pytest

from monai_anon.jobs import PlanError, Refusal, plan_files, shown


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a.png, sub/b.PNG, a manifest and hidden files."""
    folder = tmp_path / "images"
    (folder / "sub" / ".hidden").mkdir(parents=True)
    for name in ("a.png", "sub/b.PNG", "manifest.json", "sub/.c.png", "sub/.hidden/d.png"):
        (folder / name).touch()
    return folder


def test_folders_keep_their_structure_and_files_go_straight_into_the_output(images: Path, tmp_path: Path) -> None:
    (tmp_path / "single.png").touch()
    plan = plan_files([images, tmp_path / "single.png"], tmp_path / "out")
    assert [(job.name, job.target.relative_to(tmp_path / "out").as_posix()) for job in plan.jobs] == [
        ("a.png", "a.png"),
        ("sub/b.PNG", "sub/b.PNG"),
        ("single.png", "single.png"),
    ]
    assert plan.left_out == 1 and not plan.refusals
    assert not (tmp_path / "out").exists()


def test_one_file_may_be_given_a_new_name(images: Path, tmp_path: Path) -> None:
    (job,) = plan_files([images / "a.png"], tmp_path / "copy.png").jobs
    assert (job.name, job.target) == ("a.png", tmp_path / "copy.png")
    (tmp_path / "copy.png").touch()
    with pytest.raises(PlanError, match=r"copy\.png exists already; --overwrite"):
        plan_files([images / "a.png"], tmp_path / "copy.png")
    with pytest.raises(PlanError, match=r"copy\.png is a file; OUTPUT must be a folder"):
        plan_files([images], tmp_path / "copy.png")


def test_inputs_that_cannot_be_used_are_listed_together(images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.doc").touch()
    with pytest.raises(PlanError) as caught:
        plan_files(
            [tmp_path / "absent.png", tmp_path / "x.doc", images / "manifest.json", tmp_path / "empty"], tmp_path / "o"
        )
    absent, document, manifest, empty = caught.value.problems
    assert absent.endswith("absent.png: no such file or folder")
    assert document.endswith("x.doc: the supported formats are PNG, JPEG, TIFF, NIfTI and DICOM")
    assert manifest.endswith("and DICOM; give the folder that holds it")
    assert empty.endswith("empty holds no image; supported are PNG, JPEG, TIFF, NIfTI and DICOM")


def test_all_targets_that_exist_are_listed_and_overwrite_allows_them(images: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.PNG"):
        (tmp_path / "out" / name).touch()
    with pytest.raises(PlanError) as caught:
        plan_files([images], tmp_path / "out")
    assert len(caught.value.problems) == 2
    assert len(plan_files([images], tmp_path / "out", overwrite=True).jobs) == 2
    (tmp_path / "out" / "a.png").unlink()
    (tmp_path / "out" / "a.png").mkdir()
    with pytest.raises(PlanError, match=r"a\.png is a folder"):
        plan_files([images], tmp_path / "out", overwrite=True)


def test_two_inputs_with_one_target_are_refused_but_the_same_one_twice_is_not(images: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").touch()
    with pytest.raises(PlanError, match=r"would both become"):
        plan_files([images, tmp_path / "other"], tmp_path / "out")
    assert len(plan_files([images, images / "a.png"], tmp_path / "out").jobs) == 2


@pytest.mark.parametrize("place", ["images", "images/new/deep", "link", "images/sub/../out"])
def test_an_output_inside_an_input_folder_is_refused(images: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "link").symlink_to(images, target_is_directory=True)
    with pytest.raises(PlanError, match="lies inside the input folder"):
        plan_files([images], tmp_path / place, overwrite=True)


def test_an_original_is_never_replaced(images: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"a\.png is an original"):
        plan_files([images / "a.png"], images, overwrite=True)
    with pytest.raises(PlanError, match=r"a\.png is an original"):
        plan_files([images / "a.png"], images / "a.png", overwrite=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(images / "a.png")
    with pytest.raises(PlanError, match=r"a\.png is an original"):
        plan_files([images], tmp_path / "out", overwrite=True)


def test_nothing_is_written_through_a_link_out_of_the_output(images: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(PlanError, match="is a link that leads out of"):
        plan_files([images], tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "sub").unlink()
    (tmp_path / "out" / "sub").touch()
    with pytest.raises(PlanError, match="a folder in its path is a file"):
        plan_files([images], tmp_path / "out", overwrite=True)


def test_links_that_lead_out_of_the_input_are_reported_and_others_followed(images: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.png").touch()
    (images / "inside.png").symlink_to(images / "a.png")
    (images / "outside.png").symlink_to(tmp_path / "outside.png")
    (images / "loop").symlink_to(images, target_is_directory=True)
    plan = plan_files([images], tmp_path / "out")
    assert [job.name for job in plan.jobs] == ["a.png", "inside.png", "sub/b.PNG"]
    assert {(refusal.path.name, refusal.reason.split(",")[0].split(";")[0]) for refusal in plan.refusals} == {
        ("loop", "a link to a folder"),
        ("outside.png", "a link that leads out of the input folder"),
    }


def test_a_file_that_cannot_be_opened_is_reported_and_not_taken_for_no_image(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "IM0001").touch()  # DICOM has no suffix on most media
    opened = Path.open

    def refused(self: Path, *args: str) -> IO[Any]:
        if self.name == "IM0001":
            raise PermissionError(13, "Permission denied", str(self))
        return opened(self, *args)

    monkeypatch.setattr(Path, "open", refused)
    plan = plan_files([images], tmp_path / "out")
    assert plan.refusals == [Refusal(images / "IM0001", "cannot be read (Permission denied)")]
    assert plan.left_out == 1 and len(plan.jobs) == 2


def test_a_path_is_shown_on_one_printable_line() -> None:
    assert shown("ä/\x1b[2J\n\udcff.png") == r"ä/\x1b[2J\n\udcff.png"
