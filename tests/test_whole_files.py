"""A file is written whole or not at all."""

import os
from pathlib import Path
from typing import Any

import pytest

from monai_anon.whole_files import require_writable, write_bytes, write_text


def test_a_file_is_written_with_its_folder_and_replaced(tmp_path: Path) -> None:
    path = write_text(tmp_path / "new" / "a.json", "old")
    assert write_text(path, "ü") == path and path.read_text(encoding="utf-8") == "ü"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_a_place_that_cannot_be_written_to_is_refused_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_text(tmp_path / "file", "mine")
    for place in (tmp_path, tmp_path / "new", tmp_path / "new" / "deep"):
        require_writable(place, "--output")
    for place in (file, file / "new", file / "new" / "deep"):
        with pytest.raises(ValueError, match=f"--output cannot be made: {file} is no folder"):
            require_writable(place, "--output")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(ValueError, match=f"{tmp_path} cannot be written to"):
        require_writable(tmp_path / "new", "--output")
    assert list(tmp_path.iterdir()) == [file]


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


def test_what_stops_after_half_the_content_leaves_the_old_file_and_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_text(tmp_path / "a.json", "old")
    opened = os.fdopen

    def filling(*arguments: Any) -> Any:
        file = opened(*arguments)

        class HalfFull:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *error: object) -> None:
                file.close()

            def write(self, content: bytes) -> int:
                file.write(content[: len(content) // 2])
                raise OSError("disk full")

        return HalfFull()

    monkeypatch.setattr(os, "fdopen", filling)
    with pytest.raises(OSError, match="disk full"):
        write_text(path, "new text")
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_file_is_written_whole_or_not_at_all_and_replaced_only_if_asked(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "new" / "a.png"
    write_bytes(target, b"black", overwrite=False)
    with pytest.raises(FileExistsError):
        write_bytes(target, b"white", overwrite=False)
    assert target.read_bytes() == b"black"
    write_bytes(target, b"white")
    assert target.read_bytes() == b"white"

    def full(self, *arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)  # what was written of the draft goes, too
    for path in (target, tmp_path / "new" / "b.png"):
        with pytest.raises(OSError, match="No space"):
            write_bytes(path, b"black")
    assert [path.name for path in target.parent.iterdir()] == ["a.png"]
    assert target.read_bytes() == b"white"


def test_a_file_has_the_permissions_it_is_given(tmp_path: Path) -> None:
    assert write_bytes(tmp_path / "secret", b"x", mode=0o600).stat().st_mode & 0o777 == 0o600
