"""Tables 4 and 5 as pure functions of rows, the paper's printed figures below ours, and the page around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from monai_anon.evaluation.aggregation import aggregate
from monai_anon.evaluation.figures import Picture
from monai_anon.evaluation.tables import PAPER, Row, cell, notes, to_markdown

if TYPE_CHECKING:
    import pandas as pd

PAPER_IRIS = "paper (iris, other data)"
COLUMNS_4 = {"SSIM": "ssim_original"}
COLUMNS_5 = {
    "SSIM": "ssim_original",
    "identity recognition": "own_original_accuracy",
    "at own EER": "own_original_accuracy_eer",
    "disease recognition": "own_finding_accuracy",
}
COST = {"training images": "training_images", "iterations": "training_iterations"}

PAPER_4 = [
    Row(method, PAPER_IRIS, "ssim_original", round(value / 100, 4), n=360)
    for method, value in {
        "only SSIM": 68.26,
        "only PSNR": 66.91,
        "SSIM and PSNR": 70.01,
        "GAN with SSIM and PSNR": 57.43,
        "fine-tuned augmented GAN": 60.73,
        "augmented GAN (final)": 53.36,
    }.items()
]
PAPER_5 = [
    Row(method, PAPER, metric, round(value / 100, 4), n=300)
    for method, values in {"3,000 images": (65.64, 65.78, 77.08), "6,000 images": (65.46, 77.24, 81.73)}.items()
    for metric, value in zip(("ssim_original", "own_original_accuracy", "own_finding_accuracy"), values, strict=True)
]

# Ablation -> number of its figure, title, what differs from the paper and why.
CAPTIONS: dict[str, tuple[int, str, str]] = {
    "realism": (
        8,
        "Table 4 and Figure 8: terms of the realism loss",
        "SSIM between original and reconstruction on the test part, 95 % intervals over patients. Every variant is "
        "the recommended recipe (train.json) with only the named terms of Eq. 3 (SSIM and PSNR at weight 1, "
        "adversarial at 0.1: the authors' code weighs SSIM ten times the adversarial term), without the L1 term "
        "and the discriminator of swaps that the recipe has beside them. The identity, medical, swap and "
        "independence terms are the recipe's, the same in all variants. All see as many images; the fine-tuned one "
        "sees half of them in a training with SSIM and PSNR, where the paper fine-tunes a finished model, and its "
        "learning rate falls twice. The paper's figures are of iris images and other people: to be read beside "
        "ours, not against them. A high SSIM rewards blur: look at the pictures.",
    ),
    "data": (
        9,
        "Table 5 and Figure 9: numbers of training images",
        "SSIM of the reconstruction; balanced accuracy over pairs of untouched images by the model's own identity "
        "latent, at the paper's threshold (which suits the scale of the paper's loss and hardly that of ours) and at "
        "the distance where the encoder's own two errors are equal; accuracy of the own classifier. The same test part "
        "for all, 95 % intervals over patients. Fewer images are those of fewer patients, drawn by the training's "
        "seed. All train as many iterations, as near as whole epochs come, so that the difference is of data and not "
        "of compute; the paper does not say whether it does so. The paper's figures are of CheXpert, other people: to "
        "be read beside ours, not against them.",
    ),
}


def table_4(rows: Sequence[Row]) -> pd.DataFrame:
    """The paper's Table 4: a line a variant and training seed, their mean where there are several, the paper's last."""
    return _table(rows, PAPER_4, COLUMNS_4)


def table_5(rows: Sequence[Row]) -> pd.DataFrame:
    """The paper's Table 5, likewise."""
    return _table(rows, PAPER_5, COLUMNS_5)


def _table(ours: Sequence[Row], papers: Sequence[Row], columns: dict[str, str]) -> pd.DataFrame:
    import pandas as pd

    lines = []
    for dataset, method in dict.fromkeys((row.dataset, row.method) for row in [*ours, *papers]):
        found = [row for row in [*ours, *papers] if (row.dataset, row.method) == (dataset, method)]
        seeds = {row.seed: [other for other in found if other.seed == row.seed] for row in found}
        named = {str(seed): rows for seed, rows in seeds.items()} if found[0] in ours else {"-": found}
        if len(seeds) > 1:
            named[f"mean of {len(seeds)}"] = aggregate(found)
        lines += [
            {"data": dataset, "method": method, "seed": seed} | _cells(rows, columns) for seed, rows in named.items()
        ]
    return pd.DataFrame(lines, columns=["data", "method", "seed", *columns, *COST, "images seen", "minutes"])


def _cells(rows: Sequence[Row], columns: dict[str, str]) -> dict[str, str]:
    by_metric = {row.metric: row for row in rows}
    costs = {title: _whole(by_metric.get(metric)) for title, metric in COST.items()}
    minutes, seen = by_metric.get("training_minutes"), max(row.images_seen for row in rows)
    return {
        **{title: cell(by_metric.get(metric)) for title, metric in columns.items()},
        **costs,
        "images seen": f"{seen:,}" if seen else "-",
        "minutes": "-" if minutes is None or minutes.value is None else f"{minutes.value:.1f}",
    }


def _whole(row: Row | None) -> str:
    return "-" if row is None or row.value is None else f"{row.value:,.0f}"


def report(name: str, table: pd.DataFrame, rows: Sequence[Row], picture: Picture, failed: Sequence[str]) -> str:
    """The ablation as one Markdown page: table, picture, what differs from the paper, what is missing, the command."""
    _, title, caption = CAPTIONS[name]
    parts = [f"# {title}", to_markdown(table)]
    if picture.columns:
        parts.append(f"![{', '.join(picture.columns)}](pictures/{picture.file})")
        parts.append(f"From left to right: {', '.join(picture.columns)}.")
    else:
        parts.append("No pictures: the test images are of real people; --pictures draws them.")
    parts.append(caption)
    parts += [f"**{note}**" for note in notes(rows)] + [f"**Not measured: {line}**" for line in failed]
    if picture.command:
        parts.append(f"Made by\n```\n{picture.command}\n```")
    return "\n\n".join(parts) + "\n"
