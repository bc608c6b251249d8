"""What each of the three latents holds, over exact factors: held-out R^2, and DCI, MIG and SAP with blocks as codes.

A block is a whole latent: what matters is that identity, finding and the rest lie in different latents, not how each
arranges them inside. All figures come from predictions of every factor from every block, learned on training patients
and made for test patients. An R^2 below `LEAST_R2` counts as nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupShuffleSplit
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from monai_anon.evaluation.contents.factors import Known, known_factors, weighted_r2
from monai_anon.evaluation.latents import real_latents
from monai_anon.evaluation.metrics import Statistic

if TYPE_CHECKING:
    import pandas as pd

    from monai_anon.cohort import Cohort
    from monai_anon.evaluation.scene import Scene
    from monai_anon.evaluation.subjects import Subject
    from monai_anon.evaluation.tables import Row
    from monai_anon.networks import Latents

Array = np.ndarray

LEAST_R2 = 0.01
FULL_R2 = 0.99
"""From here on a factor counts as wholly known: to a tenth of its standard deviation."""


class Coded(NamedTuple):
    """Images as codes: blocks name -> (N, D), standardised factors by group name -> (N, F), patients (N,)."""

    blocks: Mapping[str, Array]
    factors: Mapping[str, Array]
    patients: Array


class Predictions(NamedTuple):
    """Held-out predictions of N images, with the truth.

    Args:
        best: (B + 1, N, F) by the better of both regressors, block after block, then all blocks together.
        linear: (B, N, F) by ridge regression.
        true: (N, F), all groups side by side.
        group: (F,) index of each factor's group.
        blocks, groups: their names.
    """

    best: Array
    linear: Array
    true: Array
    group: Array
    blocks: list[str]
    groups: list[str]


def block_table(subject: Subject, scene: Scene) -> list[Row]:
    """Rows `block_LATENT_GROUP_r2` and `blocks_disentanglement`, `_completeness`, `_informativeness`, `_mig`, `_sap`.

    Intervals draw the test patients; the regressors stay as they are. No rows without latents or exact factors.
    """
    if subject.networks is None or scene.factors is None:
        return []
    known = known_factors(scene.factors["training"])
    training = coded(real_latents(subject, scene, "training"), known, scene.factors["training"], scene.training)
    test = coded(real_latents(subject, scene, "test"), known, scene.factors["test"], scene.test)
    predictions = predict_factors(training, test, scene.seed)

    def cell(block: int, group: int) -> Statistic:
        return lambda weights: float(factor_r2(predictions, weights)[block, predictions.group == group].mean())

    rows = [
        scene.row(subject, f"block_{name}_{of}_r2", cell(block, group))
        for block, name in enumerate(predictions.blocks)
        for group, of in enumerate(predictions.groups)
    ]
    scores: dict[str, Statistic] = {
        "disentanglement": lambda weights: disentanglement(importance(predictions, weights)),
        "completeness": lambda weights: completeness(importance(predictions, weights)),
        "informativeness": lambda weights: informativeness(predictions, weights),
        "mig": lambda weights: mutual_information_gap(predictions, weights),
        "sap": lambda weights: separated_predictability(predictions, weights),
    }
    return rows + [scene.row(subject, f"blocks_{name}", score) for name, score in scores.items()]


# ---- predictions ----


def coded(latents: Latents, known: Known, table: pd.DataFrame, cohort: Cohort) -> Coded:
    """A cohort's latents and the factors of its table (one row an image) as blocks and groups."""
    values = known.of(table)
    return Coded(
        {name: latent.numpy().astype(np.float64) for name, latent in latents._asdict().items()},
        {group: values[:, known.members(group)] for group in dict.fromkeys(known.groups)},
        cohort.patient.numpy(),
    )


def predict_factors(training: Coded, test: Coded, seed: int = 0) -> Predictions:
    """Every factor from every block.

    Ridge regression and a small network learn from four fifths of the training patients; the others choose, factor by
    factor, the better of the two, or the mean where neither explains `LEAST_R2` of the variance.
    """
    blocks = [*training.blocks.values(), np.concatenate([*training.blocks.values()], axis=1)]
    asked = [*test.blocks.values(), np.concatenate([*test.blocks.values()], axis=1)]
    factors = np.concatenate([*training.factors.values()], axis=1)
    split = GroupShuffleSplit(1, test_size=0.2, random_state=seed)
    learn, choose = next(split.split(factors, groups=training.patients))
    found = [_predict(a, factors, b, (learn, choose), seed) for a, b in zip(blocks, asked, strict=True)]
    sizes = [values.shape[1] for values in training.factors.values()]
    return Predictions(
        np.stack([best for best, _ in found]),
        np.stack([linear for _, linear in found[:-1]]),
        np.concatenate([*test.factors.values()], axis=1),
        np.repeat(np.arange(len(sizes)), sizes),
        list(training.blocks),
        list(training.factors),
    )


def _predict(code: Array, factors: Array, asked: Array, parts: tuple[Array, Array], seed: int) -> tuple[Array, Array]:
    """The best and the linear prediction (M, F) for codes ``asked`` (M, D)."""
    learn, choose = parts
    wanted = factors[learn]
    candidates = [tuple(np.zeros((len(part), wanted.shape[1])) for part in (choose, asked))]  # the mean of training
    ridge = RidgeCV(np.logspace(-3, 5, 9), alpha_per_target=True)
    network = MLPRegressor(
        hidden_layer_sizes=(64,), alpha=1e-2, learning_rate_init=3e-3, max_iter=40, random_state=seed
    )
    for regressor in (ridge, network):
        model = make_pipeline(StandardScaler(), regressor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of rounds is the budget
            model.fit(code[learn], wanted[:, 0] if wanted.shape[1] == 1 else wanted)
        candidates.append(tuple(model.predict(x).reshape(len(x), -1) for x in (code[choose], asked)))
    scores = np.stack([weighted_r2(chosen, factors[choose], np.ones(len(choose))) for chosen, _ in candidates])
    scores = np.nan_to_num(scores, nan=-np.inf)
    scores[0] = LEAST_R2
    column = np.arange(factors.shape[1])
    answers = np.stack([answer for _, answer in candidates])
    linear = np.where(scores[1] > scores[0], answers[1], answers[0])
    return answers[scores.argmax(axis=0), :, column].T, linear


# ---- figures ----


def factor_r2(predictions: Predictions, weights: Array) -> Array:
    """Held-out R^2 of every factor from every block, and at the end from all together: (B + 1, F)."""
    return np.stack([weighted_r2(best, predictions.true, weights) for best in predictions.best])


def block_importance(training: Coded, test: Coded, seed: int = 0) -> Array:
    """How much each block tells of each group on the test images: `importance` (blocks, groups), all images alike."""
    return importance(predict_factors(training, test, seed), np.ones(len(test.patients)))


def importance(predictions: Predictions, weights: Array) -> Array:
    """Mean held-out R^2 of a group's factors from a block: (B, G) in [0, 1]; below `LEAST_R2` it is 0."""
    return _of_groups(factor_r2(predictions, weights)[:-1], predictions)


def disentanglement(matrix: Array) -> float:
    """Whether each block holds one group only, in [0, 1] (Eastwood and Williams 2018), for importances (B, G).

    One less the entropy of a row, in units of that of an even one; rows count by their sum. 0 where all is 0.
    """
    total = matrix.sum()
    if total == 0:
        return 0.0
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1e-12)
    logarithm = np.log(share, out=np.zeros_like(share), where=share > 0)
    purity = 1.0 + (share * logarithm).sum(axis=1) / np.log(matrix.shape[1])
    return float(purity @ matrix.sum(axis=1) / total)


def completeness(matrix: Array) -> float:
    """Whether each group lies in one block only, in [0, 1]: `disentanglement` of the transposed importances."""
    return disentanglement(matrix.T)


def informativeness(predictions: Predictions, weights: Array) -> float:
    """Mean over the groups of the R^2 from all blocks together, in [0, 1] (Eastwood and Williams 2018)."""
    return float(_of_groups(factor_r2(predictions, weights)[-1:], predictions).mean())


def mutual_information_gap(predictions: Predictions, weights: Array) -> float:
    """MIG (Chen et al. 2018): by how much the best block knows more of a factor than the second best, in [0, 1].

    Mutual information of a whole latent is bounded from below by its predictions, -log(1 - R^2) / 2 for Gaussian errors
    (Barber and Agakov 2003), and is counted in units of that of an R^2 of `FULL_R2`. Groups count alike.
    """
    explained = np.clip(factor_r2(predictions, weights)[:-1], 0.0, FULL_R2)
    return _gap(np.log1p(-_counted(explained)) / np.log1p(-FULL_R2), predictions)


def separated_predictability(predictions: Predictions, weights: Array) -> float:
    """SAP (Kumar et al. 2018): the same gap, in R^2 of linear regression, in [0, 1]. Groups count alike."""
    explained = np.stack([weighted_r2(linear, predictions.true, weights) for linear in predictions.linear])
    return _gap(_counted(explained), predictions)


def _counted(explained: Array) -> Array:
    """What is too little to be told from chance is nothing."""
    return np.where(explained < LEAST_R2, 0.0, explained)


def _of_groups(explained: Array, predictions: Predictions) -> Array:
    """Means (B, G) of (B, F) over each group's factors."""
    columns = [explained[:, predictions.group == group].mean(axis=1) for group in range(len(predictions.groups))]
    return _counted(np.stack(columns, axis=1))


def _gap(knowledge: Array, predictions: Predictions) -> float:
    """Mean over the groups of the mean lead of a factor's best block over its second best, for (B, F)."""
    ordered = np.sort(knowledge, axis=0)
    lead = ordered[-1] - ordered[-2]
    return float(np.mean([lead[predictions.group == group].mean() for group in range(len(predictions.groups))]))
