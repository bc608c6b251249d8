"""A file is written whole or not at all."""

from pathlib import Path

import pytest

from monai_anon.whole_files import write_text


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path: Path) -> None:
    path = write_text(tmp_path / "new" / "a.json", "old")
    assert write_text(path, "ü") == path and path.read_text(encoding="utf-8") == "ü"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_what_fails_on_the_way_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_text(tmp_path / "a.json", "old")

    def full(self: Path, target: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "new")
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a.json"]
