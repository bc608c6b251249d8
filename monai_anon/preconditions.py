"""What a bundle's command needs before it starts, and how it ends when something is wrong: with the reason, last.

MONAI wraps what goes wrong inside a config in a chain of exceptions, whose last line is an expression of the config. A
config whose `initialize` begins with `plain_errors` ends with the message instead.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from PIL import Image

from monai_anon.overrides import is_monai_command

_LISTED = 5  # files that a refusal names
MODES = {"L": "8-bit gray", "RGB": "8-bit colour"}  # Pillow's names of what a bundle can take
_WRAPPERS = ("Failed to evaluate", "Failed to instantiate component")  # how MONAI's own exceptions begin


class MissingFileError(FileNotFoundError):
    """A file that another command makes is not there; names the command."""


class FolderError(ValueError):
    """Input or output folder cannot be used as it is; says what to do."""


def require_file(path: str, purpose: str, command: str) -> None:
    """Refuse to start without a file that another command makes.

    Args:
        path: the file.
        purpose: what it is, as a sentence goes on after "is missing: ".
        command: what makes it.

    Raises:
        MissingFileError: it is not there; names the command.
    """
    if not Path(path).is_file():
        raise MissingFileError(f"{path} is missing: {purpose}. Run first:\n  {command}")


def require_folders(
    files: Sequence[str], dataset_dir: str, output_dir: str, overwrite: bool = False, modes: Sequence[str] = ("L",)
) -> None:
    """Refuse to anonymise `files` of `dataset_dir` into `output_dir` where that would surprise.

    Args:
        files: the images found.
        overwrite: let results stand in a folder that holds some already.
        modes: Pillow's modes of the images that can be taken, of `MODES`.

    Raises:
        FolderError: no image, an image of another mode, an output folder inside the input folder (its files
            would be input the next time), one that is not empty, or two inputs with one result.
    """
    source, target = Path(dataset_dir), Path(output_dir)
    if not files:
        raise FolderError(f"{source} holds no PNG file; --dataset_dir takes the folder with the images")
    if target.resolve().is_relative_to(source.resolve()):
        raise FolderError(f"{target} lies in {source}: its files would be taken as input; choose another --output_dir")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise FolderError(f"{target} is not empty; choose another --output_dir, or --overwrite True")
    wrong = [f"{file}: {mode}" for file, mode in ((file, _mode(file)) for file in files) if mode not in modes]
    names = Counter(str(Path(file).with_suffix("")) for file in files)
    wrong += [f"{file}: another has its name" for file in files if names[str(Path(file).with_suffix(""))] > 1]
    if wrong:
        more = f"\n  and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        kinds = " or ".join(MODES[mode] for mode in modes)
        raise FolderError(
            f"these are not {kinds} PNG files of a name of their own (mode {', '.join(modes)}); `monai-anon anonymize` "
            "reads other formats:\n  " + "\n  ".join(wrong[:_LISTED]) + more
        )


def _mode(file: str) -> str:
    """Pillow's mode of an image, from its header."""
    try:
        with Image.open(file) as image:
            return image.mode
    except (OSError, SyntaxError):  # Pillow raises both for broken files
        return "unreadable"


def plain_errors() -> None:
    """Let `python -m monai.bundle` end with the reason: alone where it is a refusal of ours, else after the traceback.

    Does nothing elsewhere, where the exceptions are the caller's.
    """
    if is_monai_command():
        sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    cause = unwrapped(error)
    if not type(cause).__module__.startswith("monai_anon."):
        sys.__excepthook__(kind, error, trace)
        if cause is error:
            return
    print(f"\n{type(cause).__name__}: {cause}", file=sys.stderr)


def unwrapped(error: BaseException) -> BaseException:
    """The exception inside MONAI's chain that says what went wrong."""
    while error.__cause__ is not None and isinstance(error, RuntimeError) and str(error).startswith(_WRAPPERS):
        error = error.__cause__
    return error
