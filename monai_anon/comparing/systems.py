"""Systems by name: made from a bundle's `compare.json` and their overlay, trained or fitted, as subjects to measure."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from monai_anon.baselines import BASELINES
from monai_anon.baselines.system import Guides, Setting, System, fit_guides, train_system
from monai_anon.evaluation.subjects import Subject, subject_of
from monai_anon.optimisation import Optimisation
from monai_anon.preconditions import unwrapped
from monai_anon.readers import to_model_range
from monai_anon.whole_files import write_text

if TYPE_CHECKING:
    from monai_anon.cohort import Cohort

COMPARE, OVERLAYS = "compare.json", "systems"
ROWS, MADE = "rows.jsonl", "made.json"


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every system gets: `batches` of `batch_size` anchors each, and the seed of its training."""

    batches: int
    batch_size: int
    seed: int = 0

    @property
    def images(self) -> int:
        """Anchors that a training looks at, repetitions counted."""
        return self.batches * self.batch_size


def chosen(names: Sequence[str] | None) -> list[str]:
    """The systems of these names, in the order of `BASELINES`; all of them for None.

    Raises:
        ValueError: a name that there is not.
    """
    if unknown := sorted(set(names or ()) - set(BASELINES)):
        raise ValueError(f"--systems: no {', '.join(unknown)}; there are {', '.join(BASELINES)}")
    return [name for name in BASELINES if names is None or name in names]


def config(bundle: Path, name: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """`compare.json` of a bundle with a system's overlay, and some entries replaced.

    Raises:
        ValueError: the bundle has no `compare.json`.
    """
    from monai.bundle import ConfigParser

    base, overlay = (bundle / "configs" / where for where in (COMPARE, Path(OVERLAYS) / f"{name}.json"))
    if not base.is_file():
        raise ValueError(f"{base} is missing; --bundle takes a bundle's folder, such as bundles/chest")
    files = [base, overlay] if overlay.is_file() else [base]
    return {**ConfigParser.load_config_files(files), **entries}


def made(bundle: Path, name: str, entries: Mapping[str, Any]) -> nn.Module:
    """A system as its overlay says, untrained; without an overlay its class is made without arguments."""
    from monai.bundle import ConfigParser

    parser = ConfigParser(config(bundle, name, entries))
    if parser.get("system") is None:
        return BASELINES[name]()
    try:
        system = parser.get_parsed_content("system")
    except RuntimeError as error:
        raise unwrapped(error) from error
    if not isinstance(system, BASELINES[name]):
        raise ValueError(
            f"{bundle / 'configs' / OVERLAYS / name}.json makes a {type(system).__name__}; "
            f"`{name}` is a {BASELINES[name].__name__}"
        )
    assert isinstance(system, nn.Module)
    return system


def require_same(run: Path, bundle: Path, name: str, entries: Mapping[str, Any]) -> None:
    """Write down what a system is made with, before anything is trained or measured of it.

    Raises:
        FileExistsError: the folder has it trained or measured with other numbers.
    """
    path = run / "systems" / name / MADE
    content = json.dumps(config(bundle, name, entries), indent=1, sort_keys=True) + "\n"
    used = [place for place in (path.parent / ROWS, run / "trainings" / training_of(name)) if place.exists()]
    if path.is_file() and path.read_text(encoding="utf-8") != content and used:
        raise FileExistsError(
            f"{used[0]} is of `{name}` with other numbers than {bundle / 'configs'} has now (it had those of {path}); "
            f"give another --output, or remove {' and '.join(str(place) for place in used)}"
        )
    write_text(path, content)


def training_of(name: str) -> str:
    """What a system's training is called: several may share one."""
    return str(getattr(BASELINES[name], "shares", "") or name)


def is_trained(name: str) -> bool:
    """Whether a system learns from the training part and from the guides."""
    return issubclass(BASELINES[name], System)


def groups(names: Sequence[str]) -> list[list[str]]:
    """Systems that are trained together, one after the other; all that need no training are one group.

    The largest come first, so that none of them is left to the end, when no other group runs beside it.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(training_of(name) if is_trained(name) else "", []).append(name)
    return sorted(found.values(), key=len, reverse=True)


class Trainings:
    """Trains systems on a training part and keeps them in a folder; what is kept is read.

    Args:
        folder: gets `guides/` and a folder a training.
        numbers: a bundle's `compare.json`: `guide_widths` of the networks that systems learn from; `optimisation` of
            networks that play against none, `optimisation_of_games` of those that do.
    """

    def __init__(
        self,
        cohort: Cohort,
        budget: Budget,
        folder: Path,
        numbers: Mapping[str, Any],
        device: torch.device | str = "cpu",
    ) -> None:
        self.cohort, self.budget, self.folder = cohort, budget, folder
        self.widths, self.device = tuple(numbers["guide_widths"]), device
        self.optimisation = Optimisation(**numbers["optimisation"])
        self.game = Optimisation(**numbers["optimisation_of_games"])
        self._guides: Guides | None = None

    def setting(self, guides: Guides | None) -> Setting:
        given: Any = guides  # none of them is looked at while they are fitted
        budget = self.budget
        return Setting(
            self.cohort,
            given,
            self.optimisation,
            budget.batches,
            budget.batch_size,
            budget.seed,
            device=self.device,
            game=self.game,
        )

    @property
    def guides(self) -> Guides:
        """Fitted by the first call, or read."""
        if self._guides is None:
            self._guides = fit_guides(self.setting(None), self.folder / "guides", self.widths)
        return self._guides

    def subject(self, name: str, module: nn.Module) -> Subject:
        """A system trained, fitted or as it is, ready to be measured."""
        if isinstance(module, System):
            module = train_system(module, self.setting(self.guides), self.folder / name, name)
            return subject_of(name, module, device=self.device, images_seen=self.budget.images)
        if callable(fit := getattr(module, "fit", None)):
            torch.manual_seed(self.budget.seed)
            fit(to_model_range(self.cohort.images), self.cohort.patient.clone())
        return subject_of(name, module, device=self.device)
