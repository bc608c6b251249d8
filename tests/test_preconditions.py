"""A bundle's command does not start where it could not end well, and says why in its last line."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_anon import preconditions
from monai_anon.preconditions import FolderError, MissingFileError, require_file, require_folders, unwrapped


def picture(path: Path, dtype: type = np.uint8, mode: str | None = None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(64, dtype=dtype).reshape(8, 8)).convert(mode).save(path)
    return str(path)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"model\.pt is missing: no model\. Run first:\n  train it"):
        require_file(str(tmp_path / "model.pt"), "no model", "train it")
    (tmp_path / "model.pt").touch()
    require_file(str(tmp_path / "model.pt"), "no model", "train it")


def test_folders_without_surprises_are_accepted(tmp_path: Path) -> None:
    files = [picture(tmp_path / "in" / name) for name in ("a.png", "b/a.png", "c.d.png", "c.png")]
    (tmp_path / "out").mkdir()
    require_folders(files, str(tmp_path / "in"), str(tmp_path / "out"))
    require_folders(files, str(tmp_path / "in"), str(tmp_path / "new"))


def test_results_are_not_written_over_or_among_the_input(tmp_path: Path) -> None:
    files = [picture(tmp_path / "in" / "a.png")]
    folder = str(tmp_path / "in")
    for inside in (tmp_path / "in", tmp_path / "in" / "out", tmp_path / "x" / ".." / "in"):
        with pytest.raises(FolderError, match="would be taken as input"):
            require_folders(files, folder, str(inside), overwrite=True)
    picture(tmp_path / "out" / "a_anonymised.png")
    with pytest.raises(FolderError, match="is not empty"):
        require_folders(files, folder, str(tmp_path / "out"))
    require_folders(files, folder, str(tmp_path / "out"), overwrite=True)


def test_unusable_input_is_listed_at_once(tmp_path: Path) -> None:
    broken = tmp_path / "in" / "broken.png"
    files = [
        picture(tmp_path / "in" / "deep.png", np.uint16),
        picture(tmp_path / "in" / "colour.png", mode="RGB"),
        picture(tmp_path / "in" / "twice.png"),
        picture(tmp_path / "in" / "twice.PNG"),
        str(broken),
    ]
    broken.write_bytes(b"no picture")
    with pytest.raises(FolderError) as refused:
        require_folders(files, str(tmp_path / "in"), str(tmp_path / "out"))
    for reason in ("deep.png: I;16", "colour.png: RGB", "broken.png: unreadable", "twice.png: another", "twice.PNG"):
        assert reason in str(refused.value)
    with pytest.raises(FolderError, match="holds no PNG file"):
        require_folders([], str(tmp_path / "in"), str(tmp_path / "out"))


def chain(cause: Exception) -> BaseException:
    """As MONAI raises it from within a config."""
    try:
        try:
            try:
                raise cause
            except ValueError as error:
                raise RuntimeError("Failed to instantiate component 'x'") from error
        except RuntimeError as error:
            raise RuntimeError("Failed to evaluate ConfigExpression: 'y'") from error
    except RuntimeError as error:
        return error


def test_the_reason_is_found_inside_of_monais_chain() -> None:
    refusal = FolderError("full")
    assert unwrapped(chain(refusal)) is refusal
    own = RuntimeError("out of memory")
    own.__cause__ = ValueError("something below")
    assert unwrapped(own) is own  # a chain of anybody else's stays whole


def test_a_refusal_of_ours_stands_alone_and_other_errors_after_their_traceback(capsys: pytest.CaptureFixture) -> None:
    for error, traceback in ((FolderError("full"), False), (ValueError("bug"), True)):
        raised = chain(error)
        preconditions._report(type(raised), raised, raised.__traceback__)
        text = capsys.readouterr().err
        assert text.splitlines()[-1] == f"{type(error).__name__}: {error}"
        assert ("Traceback" in text) == traceback


def test_only_monais_command_gets_the_plain_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.excepthook
    monkeypatch.setattr(sys, "excepthook", before)
    preconditions.plain_errors()
    assert sys.excepthook is before
    monkeypatch.setattr(preconditions, "is_monai_command", lambda: True)
    preconditions.plain_errors()
    assert sys.excepthook is preconditions._report
