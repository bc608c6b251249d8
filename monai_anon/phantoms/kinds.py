"""What a kind of generated cohort is, and how one is written: the part that all phantoms share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_anon.manifest import MANIFEST_NAME
from monai_anon.phantoms.rendering import check_size
from monai_anon.phantoms.sizes import Sizes, part_sizes
from monai_anon.phantoms.writing import recorded_settings, write_folder

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd


@dataclass(frozen=True)
class Protocol:
    """How a cohort is made: usual images and patients of training, validation and test, and whether all parts show the
    same people. What else differs, such as what is behind them, `Phantom.sample` knows by the protocol's name.
    """

    images: Sizes
    patients: Sizes
    closed_set: bool = False


@dataclass(frozen=True)
class Phantom:
    """A kind of generated cohort.

    Attributes:
        version: goes up with every change of a pixel, so that a cohort of an older version is not taken for a new one.
        classes: names of the findings.
        sides: manifest's word for each value of `med_side`; empty where the finding has no side.
        protocols: by name, the usual one first. Where there is only one, neither `sample` nor a manifest names it.
        bounds: the fewest and the most images of a patient in a part.
        columns: factors that `render` needs; tells whose table it is, too.
        sample: (seed, images, patients, difficulty[, protocol]) -> a table of factors, one row an image.
        render: (rows of that table, size) -> uint8 (n, size, size) or (n, size, size, 3).
    """

    name: str
    version: int
    classes: tuple[str, ...]
    sides: Mapping[int, str]
    protocols: Mapping[str, Protocol]
    bounds: tuple[int, int]
    columns: tuple[str, ...]
    sample: Callable[..., pd.DataFrame]
    render: Callable[[pd.DataFrame, int], np.ndarray]

    def protocol(self, name: str | None = None) -> tuple[str, Protocol]:
        """A protocol and its name, how a cohort is made: who is in which part, what is behind them; the usual one where
        none is given.

        Raises:
            ValueError: there is none of that name.
        """
        name = next(iter(self.protocols)) if name is None else name
        if name not in self.protocols:
            raise ValueError(f"protocol {name!r}: {self.name} phantoms have {', '.join(self.protocols)}")
        return name, self.protocols[name]

    def part_sizes(self, images: str | None, patients: str | None, protocol: str | None = None) -> tuple[Sizes, Sizes]:
        """Images and patients of the three parts from what a person types, see `sizes.part_sizes`."""
        usual = self.protocol(protocol)[1]
        return part_sizes(images, patients, (usual.images, usual.patients), self.bounds, usual.closed_set)

    def factors(
        self,
        seed: int = 0,
        images: Sizes | None = None,
        patients: Sizes | None = None,
        difficulty: float = 0.0,
        protocol: str | None = None,
    ) -> pd.DataFrame:
        """A cohort's table of factors; images and patients are the protocol's usual ones where not given."""
        usual = self.protocol(protocol)[1]
        choice = self._choice(protocol)
        return self.sample(seed, images or usual.images, patients or usual.patients, difficulty, **choice)

    def write_cohort(
        self,
        out: str | Path,
        seed: int = 0,
        size: int = 64,
        images: Sizes | None = None,
        patients: Sizes | None = None,
        difficulty: float = 0.0,
        overwrite: bool = False,
        progress: bool = True,
        protocol: str | None = None,
    ) -> Path:
        """Write a cohort to OUT/manifest.json, OUT/images/*.png and OUT/factors.csv; returns the manifest's path.

        Entries of the manifest also have `side` (one of `sides`, if there are any) and `severity` (0 to 1). All of the
        cohort is written or nothing.

        Args:
            out: a folder, absent or empty.
            seed: the same seed gives the same cohort everywhere.
            size: side of the images in pixels, 32 to 512.
            images: of training, validation and test; the protocol's usual ones where not given.
            patients: of training, validation and test, with as many images each as `bounds` say; likewise.
            difficulty: 0 to 1, see `sample`.
            overwrite: replace `out` where it holds a generated cohort.
            progress: show progress on a terminal.
            protocol: how the cohort is made: who is in which part, what is behind them; the usual one where not given.

        Raises:
            FileExistsError: `out` holds something and is not to be overwritten, or is no generated cohort.
            ValueError: settings out of range.
        """
        check_size(size)
        return write_folder(
            out,
            self.factors(seed, images, patients, difficulty, protocol),
            self.render,
            self._settings(seed, size, images, patients, difficulty, protocol),
            self.classes,
            self._extra_columns,
            overwrite=overwrite,
            progress=progress,
            closed_set=self.protocol(protocol)[1].closed_set,
        )

    def ensure_cohort(
        self,
        out: str | Path,
        seed: int = 0,
        size: int = 64,
        images: Sizes | None = None,
        patients: Sizes | None = None,
        difficulty: float = 0.0,
        progress: bool = True,
        protocol: str | None = None,
    ) -> Path:
        """The manifest's path of the cohort with these settings: written where absent, reused where it is there.

        Raises:
            ValueError: the folder holds a cohort of other settings (each one that differs is named), a broken manifest,
                or settings are out of range.
        """
        wanted = self._settings(seed, size, images, patients, difficulty, protocol)
        found = recorded_settings(out)
        if found is None:
            return self.write_cohort(out, seed, size, images, patients, difficulty, False, progress, protocol)
        if found != wanted:
            names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            differences = ", ".join(f"{name} is {found.get(name)}, not {wanted.get(name)}" for name in names)
            raise ValueError(f"{out} holds another cohort: {differences}; choose another place or write it anew")
        return Path(out) / MANIFEST_NAME

    def _choice(self, protocol: str | None) -> dict[str, str]:
        """The protocol by name, where there is a choice."""
        return {"protocol": self.protocol(protocol)[0]} if len(self.protocols) > 1 else {}

    def _settings(
        self,
        seed: int,
        size: int,
        images: Sizes | None,
        patients: Sizes | None,
        difficulty: float,
        protocol: str | None,
    ) -> dict[str, Any]:
        """What decides a cohort's content, as the manifest records it."""
        usual = self.protocol(protocol)[1]
        return {
            "name": self.name,
            "version": self.version,
            "seed": int(seed),
            "size": int(size),
            "images": [int(count) for count in images or usual.images],
            "patients": [int(count) for count in patients or usual.patients],
            "difficulty": float(difficulty),
            **self._choice(protocol),
        }

    def _extra_columns(self, row: Any) -> dict[str, Any]:
        """Columns of a manifest entry that only generated images have."""
        side = {"side": self.sides[int(row.med_side)]} if self.sides else {}
        return {**side, "severity": float(row.med_severity)}
