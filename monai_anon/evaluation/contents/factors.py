"""Which exact factors of generated images survive anonymisation, and whether swapped latents carry the right ones.

No real data can show these figures: the truth is the table that the images were rendered from. A regressor learns all
factors at once from released training images with the factors of their originals, so it knows how the release looks,
and is asked about released test images of other patients. It sees pixels as they are: pose and exposure are factors.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_anon.evaluation import metrics
from monai_anon.evaluation.judge_networks import backbone, batched
from monai_anon.evaluation.judge_training import fit, seeded, take
from monai_anon.evaluation.latents import decode, real_latents
from monai_anon.evaluation.targets import draw_targets
from monai_anon.phantoms.writing import FACTORS_NAME
from monai_anon.readers import to_uint8

if TYPE_CHECKING:
    import pandas as pd

    from monai_anon.cohort import Cohort
    from monai_anon.evaluation.scene import Scene
    from monai_anon.evaluation.subjects import Subject
    from monai_anon.evaluation.tables import Row

Array = np.ndarray

GROUPS = {"id_": "identity", "med_": "medical", "res_": "residual"}
"""What a factor's name begins with, and the latent that should hold it."""
NOISE = 0.02
"""Standard deviation of the noise that the regressor learns under, in [-1, 1]: it keeps it from learning by heart."""


class Known(NamedTuple):
    """The factors that can be asked for: their names (F,), groups (F,), and mean and deviation (F,) in training."""

    names: list[str]
    groups: list[str]
    mean: Array
    deviation: Array

    def of(self, table: pd.DataFrame) -> Array:
        """(N, F) values of a table, standardised by the training part's."""
        return (table[self.names].to_numpy(dtype=np.float64) - self.mean) / self.deviation

    def members(self, group: str) -> Array:
        """Places of a group's factors."""
        return np.flatnonzero(np.array(self.groups) == group)


# ---- the tables ----


def load_factors(folder: str | Path) -> pd.DataFrame:
    """The exact factors of a generated cohort, one row an image, from `factors.csv` in the manifest's folder.

    Raises:
        FileNotFoundError: the cohort has none; real images never do.
    """
    import pandas as pd

    path = Path(folder) / FACTORS_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; only generated cohorts have exact factors")
    return pd.read_csv(path)


def aligned_factors(table: pd.DataFrame, cohort: Cohort) -> pd.DataFrame:
    """The rows of a table in the order of a cohort's entries, found by `image`.

    Raises:
        ValueError: an image without a row, or with two.
    """
    images = [str(entry["image"]) for entry in cohort.entries]
    by_image = table.set_index("image", drop=False)
    if not by_image.index.is_unique:
        raise ValueError(f"factors: {int(by_image.index.duplicated().sum())} images have more than one row")
    if missing := sum(image not in by_image.index for image in images):
        raise ValueError(f"factors: {missing} of {len(images)} images of {cohort.name} have no row")
    return by_image.loc[images].reset_index(drop=True)


def factor_tables(folder: str | Path, cohorts: Mapping[str, Cohort | None]) -> dict[str, pd.DataFrame] | None:
    """What `Scene.factors` holds: a table for each part's cohort, or None where the folder has no `factors.csv`."""
    if not (Path(folder) / FACTORS_NAME).is_file():
        return None
    table = load_factors(folder)
    return {part: aligned_factors(table, cohort) for part, cohort in cohorts.items() if cohort is not None}


def known_factors(table: pd.DataFrame) -> Known:
    """The factors that vary and can be read: seeds of noise and vessels are left out, and what is always the same."""
    candidates = [name for name in table if name.startswith(tuple(GROUPS)) and not name.endswith("_seed")]
    names = [name for name in candidates if float(table[name].std(ddof=0)) > 0]
    values = table[names].to_numpy(dtype=np.float64)
    groups = [next(group for prefix, group in GROUPS.items() if name.startswith(prefix)) for name in names]
    return Known(names, groups, values.mean(axis=0), values.std(axis=0))


# ---- what is left in released images ----


def factors(subject: Subject, scene: Scene) -> list[Row]:
    """Factors that can be read from released test images: `factor_NAME_r2`, and `factors_GROUP_r2`, a group's mean.

    R^2 is not clipped: who knows nothing does best to answer with the training mean, which is 0, and who guesses is
    below. (A squared correlation would be above 0 by chance, and would forgive a wrong scale.) Where the subject has
    latents, the rows of `swap_consistency` follow. No rows where factors are not known.
    """
    if scene.factors is None:
        return []
    known = known_factors(scene.factors["training"])
    true = known.of(scene.factors["test"])
    read = factor_reader(subject, scene)(scene.released(subject, "test").images)
    note = "of the original, read by a regressor trained on released images; at chance 0 or below"
    rows = [
        scene.row(subject, f"factor_{name}_r2", group_mean_r2(read, true, np.array([i])), note=note)
        for i, name in enumerate(known.names)
    ]
    rows += [
        scene.row(subject, f"factors_{group}_r2", group_mean_r2(read, true, known.members(group)), note=note)
        for group in dict.fromkeys(known.groups)
    ]
    return rows + swap_consistency(subject, scene)


def weighted_r2(read: Array, true: Array, weights: Array) -> Array:
    """Share explained of each column of (N, F) under weights (N,): (F,), at most 1; NaN where all is the mean.

    ``true`` is standardised by the training part, and what there is to explain is its distance from the training mean,
    0 (the out-of-sample R^2 of Campbell and Thompson 2008): few test patients then do not push a blind guess below 0.
    """
    spread, missed = weights @ true**2, weights @ (read - true) ** 2
    return 1.0 - np.divide(missed, spread, out=np.full(len(spread), np.nan), where=spread > 1e-12)


def group_mean_r2(read: Array, true: Array, columns: Array) -> metrics.Statistic:
    """Mean `weighted_r2` of some columns of (N, F) as a statistic of image weights."""
    read, true = read[:, columns], true[:, columns]
    return lambda weights: float(np.mean(weighted_r2(read, true, weights)))


# ---- swapped latents ----


def swap_consistency(subject: Subject, scene: Scene) -> list[Row]:
    """What a regressor that knows real images reads from swapped test images: `swap_NAME` and `swap_GROUP`.

    Correlation in [-1, 1] with the lender's true factor for what should change, with the original's for what should
    stay, under "identity replacement" and "medical replacement"; under "reconstruction", where nothing is
    swapped, it is what decoder and regressor allow at best.
    """
    if subject.networks is None or scene.factors is None:
        return []
    known, model = known_factors(scene.factors["training"]), subject.networks.disentangler
    own = known.of(scene.factors["test"])
    try:
        target, _ = draw_targets(scene.patients, scene.test.finding.numpy(), scene.seed)
    except ValueError as error:
        return [scene.silent(subject, f"swap_{group}", f"not measured: {error}") for group in GROUPS.values()]
    reader, z, rows = factor_reader(None, scene), real_latents(subject, scene, "test"), []
    for method, swapped in (
        ("reconstruction", ""),
        ("identity replacement", "identity"),
        ("medical replacement", "medical"),
    ):
        lent = {} if not swapped else {swapped: getattr(z, swapped)[torch.from_numpy(target)]}
        read = reader(to_uint8(decode(model, z._replace(**lent))))
        expected = np.where(np.array(known.groups) == swapped, own[target], own)
        rows += _swap_rows(dataclasses.replace(subject, name=method), scene, known, read, expected)
    return rows


def _swap_rows(subject: Subject, scene: Scene, known: Known, read: Array, expected: Array) -> list[Row]:
    def mean_correlation(columns: Array) -> metrics.Statistic:
        return lambda weights: float(
            np.mean([metrics.severity_correlation(read[:, i], expected[:, i], weights) for i in columns])
        )

    single = {f"swap_{name}": np.array([i]) for i, name in enumerate(known.names)}
    grouped = {f"swap_{group}": known.members(group) for group in dict.fromkeys(known.groups)}
    return [scene.row(subject, metric, mean_correlation(columns)) for metric, columns in (single | grouped).items()]


# ---- the regressor ----


class FactorReader:
    """Reads standardised factors (N, F) from uint8 images (N, C, S, S): a network, and a line for each of its outputs.

    The line has the slope of least squares on the validation part, at least 0, and leads from the mean output to 0, the
    training mean. It takes back what the network learned by heart: what it cannot read it answers with the mean.
    Without a validation part outputs stay as they are.
    """

    def __init__(self, network: nn.Module, size: int, device: torch.device) -> None:
        self.network, self.device = network, device
        self.slope, self.start = np.ones(size), np.zeros(size)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Array:
        """The factors of images."""
        raw = batched(self.network.eval(), images, self.device, 256)[0].astype(np.float64)
        return raw * self.slope + self.start

    def calibrate(self, images: Tensor, true: Array) -> None:
        """Fit the lines to images with known factors (N, F)."""
        raw = self(images)
        away = raw - raw.mean(axis=0)
        spread = (away**2).mean(axis=0)
        together = (away * true).mean(axis=0)
        self.slope = np.maximum(np.divide(together, spread, out=np.zeros_like(spread), where=spread > 1e-12), 0.0)
        self.start = -self.slope * raw.mean(axis=0)


def factor_reader(subject: Subject | None, scene: Scene) -> FactorReader:
    """A regressor of all known factors, from a subject's released training images or (None) from real ones.

    It is kept in the scene under the images it learned from, so that the one of method none is the one of real images.
    """
    assert scene.factors is not None
    training = scene.training.images if subject is None else scene.released(subject, "training").images
    validation = None
    if scene.validation is not None and "validation" in scene.factors:
        validation = scene.validation.images if subject is None else scene.released(subject, "validation").images
    key = f"factor_reader_{hashlib.sha256(training.contiguous().numpy().tobytes()).hexdigest()}"
    if key not in scene.memo:
        scene.memo[key] = train_factor_reader(training, validation, scene)
    found: FactorReader = scene.memo[key]
    return found


def train_factor_reader(training: Tensor, validation: Tensor | None, scene: Scene) -> FactorReader:
    """Learns the scene's factors from images (N, C, S, S), in `scene.steps` batches; the best state on validation."""
    assert scene.factors is not None
    known, schedule, device = known_factors(scene.factors["training"]), scene.schedule, scene.device
    true = torch.from_numpy(known.of(scene.factors["training"])).float().to(device)
    right = None if validation is None else known.of(scene.factors["validation"])
    network = seeded(lambda: backbone(training.shape[1], schedule.planes, len(known.names)), scene.seed, device)
    reader = FactorReader(network, len(known.names), device)
    draw, generator = np.random.default_rng(scene.seed), torch.Generator(device).manual_seed(scene.seed)

    def loss() -> Tensor:
        index = draw.choice(len(training), min(schedule.batch_size, len(training)), replace=False)
        images = take(training, index, device)
        noise = torch.randn(images.shape, generator=generator, device=device)
        return F.mse_loss(network(images + NOISE * noise), true[torch.from_numpy(index).to(device)])

    def score() -> float:
        if validation is None or right is None:
            return float("nan")
        return -float(((reader(validation) - right) ** 2).mean())

    fit(network, loss, score, scene.steps, schedule, scene.title("factor regressor"))
    if validation is not None and right is not None:
        reader.calibrate(validation, right)
    return reader
