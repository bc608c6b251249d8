"""Rows, the one form of a measured value, and the paper's tables as pure functions of rows.

A row is one figure with its interval and where it comes from; rows are kept as JSONL. `table_2` and `table_3` have the
paper's columns first, by the model's own networks as the paper measures, then the same question put to the judges.
The paper's printed figures of like images stand beside ours, marked as from other data. pandas is imported when a table
is made.

Methods and metrics that the tables look for are what `monai_anon.evaluation.protocol` writes.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_anon.evaluation.people import KNOWN_PEOPLE, NOT_APPLICABLE
from monai_anon.evaluation.printed import LABELS, TABLE_2, TABLE_3, TEST_IMAGES, kinds_of
from monai_anon.whole_files import write_text

if TYPE_CHECKING:
    import pandas as pd

PAPER = LABELS["chest"]
PAPERS = frozenset(LABELS.values())
JUDGES = "untouched images"
EXPERIMENTS = ("reconstruction", "medical replacement", "identity replacement")

# Column -> metric; first the paper's own measure, then that at an equal-error distance and the independent judges'.
OWN_2 = {
    "SSIM original": "ssim_original",
    "SSIM twice": "ssim_twice",
    "identity original": "own_original_accuracy",
    "identity target": "own_target_accuracy",
    "accuracy": "own_finding_accuracy",
    "F1": "own_finding_f1",
}
JUDGED_2 = {
    "at own EER: original": "own_original_accuracy_eer",
    "target": "own_target_accuracy_eer",
    "judge: AUC original": "judge_original_auc",
    "AUC target": "judge_target_auc",
    "rank-1 original": "judge_original_rank_1",
    "rank-1 target": "judge_target_rank_1",
    "finding AUC": "judge_finding_auc",
    "finding accuracy": "judge_finding_accuracy",
    "side": "judge_side_accuracy",
    "severity corr.": "judge_severity_correlation",
}
OWN_3 = {
    "original accuracy": "own_original_accuracy",
    "overall accuracy": "own_overall_accuracy",
    "accuracy": "own_finding_accuracy",
}
JUDGED_3 = {
    "at own EER: original": "own_original_accuracy_eer",
    "judge: AUC original": "judge_original_auc",
    "rank-1 original": "judge_original_rank_1",
    "finding AUC": "judge_finding_auc",
    "finding accuracy": "judge_finding_accuracy",
    "side": "judge_side_accuracy",
    "severity corr.": "judge_severity_correlation",
}
# Columns that a closed set alone has.
CLOSED_3 = {
    "identified": "judge_identification_accuracy",
    "largest confidence": "judge_identification_confidence",
}
CLOSED_QUALITY = {
    "test people trained on": KNOWN_PEOPLE,
    "identification rank-1": "identification_accuracy",
    "by chance": "identification_chance",
    "largest confidence": "identification_confidence",
    "less accuracy": "identification_overconfidence",
    "of strangers": "identification_stranger_confidence",
}
CLOSED_SET = (
    "A closed set: the test people are in the training part, too, by other images. The verifier and whatever learns "
    "from released images know them, so these attackers are stronger than elsewhere, and no figure here is to be "
    "compared with one of people apart. A judge may know the finding by the person. Membership (P5) asks which images "
    "were trained on, not whose; nothing is compared with strangers, for there are none."
)
# Prefix of a metric -> what it belongs to (evaluation.md); the order is that of the tables.
ATTACKS = {
    "privacy_": "headline",
    "static_": "P1 static",
    "adaptive_": "P2 adaptive",
    "linkage_": "P3 linkage",
    "inversion_": "P4 inversion",
    "membership_": "P5 membership",
    "repeated_": "P6 repeated release",
    "attribute_": "P7 attributes",
    "probe_": "P8 latent probes",
    "oracle_": "P9 codes known",
    "identification_": "P10 identification",
}
CONTENT = {
    "judge_": "M1, M3 the judge on released images",
    "trained_on_released_": "M2 trained on released, tested on real",
    "ssim_": "R1 likeness",
    "psnr_": "R1 likeness",
    "fid": "R2 realism",
    "kid": "R2 realism",
    "precision": "R2 realism",
    "recall": "R2 realism",
    "density": "R2 realism",
    "coverage": "R2 realism",
    "retrieval_": "E1 retrieval",
    "factors_": "factors that can be read",
    "factor_": "factors that can be read",
    "block_": "blocks",
    "blocks_": "blocks",
    "channel_": "bound of what passes",
}
KEPT = {
    "finding_accuracy": "finding accuracy",
    "finding_auc": "finding AUC",
    "side_accuracy": "side accuracy",
    "severity_correlation": "severity correlation",
}
"""What the medical judge is asked of releases under a code."""
CODES = {"bits": "bits at most", "patients": "patients a prototype, at least"} | KEPT
QUALITY = {
    "verification AUC": "verification_auc",
    "rank-1": "rank_1",
    "rank-1 by chance": "rank_1_chance",
    "finding AUC": "finding_auc",
    "finding accuracy": "finding_accuracy",
    "side accuracy": "side_accuracy",
    "severity corr.": "severity_correlation",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured value.

    Args:
        method: what was measured: an experiment of Table 2, an identity source of Table 3, or "untouched images".
        dataset: the cohort, part included.
        metric: which figure.
        value: the figure; None where it may not be given (see ``note``).
        ci_low: lower bound of the interval, None where there is none.
        ci_high: upper bound.
        n: observations behind the value.
        seed: of the measurement.
        weights: what identifies the model measured.
        revision: of the code.
        note: why there is no value, or how it came about.
        images_seen: by the training of what was measured, repetitions counted; 0 where nothing was trained, or unknown.
        seeds: training seeds that the value is the mean of.
    """

    method: str
    dataset: str
    metric: str
    value: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int = 0
    seed: int = 0
    weights: str = ""
    revision: str = ""
    note: str = ""
    images_seen: int = 0
    seeds: int = 1


def paper_rows(datasets: Iterable[str]) -> list[Row]:
    """Tables 2 and 3 as printed, of the paper's datasets that ours are like."""
    classified = [*CLOSED_3.values(), OWN_3["accuracy"]]  # irises have a class for each person
    rows = []
    for kind in kinds_of(datasets):
        metrics_3 = classified if kind == "iris" else list(OWN_3.values())
        for table, metrics in ((TABLE_2[kind], list(OWN_2.values())), (TABLE_3[kind], metrics_3)):
            rows += [
                Row(method, LABELS[kind], metric, round(value / 100, 4), n=TEST_IMAGES[kind])
                for method, values in table.items()
                for metric, value in zip(metrics, values, strict=True)
            ]
    return rows


PAPER_ROWS = paper_rows([])
"""Those of chest."""


def stamp(rows: Iterable[Row], **where: Any) -> list[Row]:
    """The rows with where they come from filled in, e.g. ``weights=..., revision=...``."""
    return [dataclasses.replace(row, **where) for row in rows]


def write_rows(rows: Iterable[Row], path: str | Path) -> Path:
    """Writes rows as JSONL, replacing the file as a whole."""
    lines = [json.dumps(dataclasses.asdict(_without_nan(row)), allow_nan=False) for row in rows]
    return write_text(path, "".join(line + "\n" for line in lines))


def read_rows(path: str | Path) -> list[Row]:
    """Reads what `write_rows` wrote.

    Raises:
        ValueError: a line that is no row, with its number.
    """
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(Row(**json.loads(line)))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no row: {error}") from error
    return rows


def quality_table(rows: Sequence[Row]) -> pd.DataFrame:
    """The judges' own figures on untouched images: the table that comes before every other."""
    own = [row for row in rows if row.method == JUDGES]
    return _table(own, [JUDGES], QUALITY | (CLOSED_QUALITY if closed_sets(own) else {}))


def closed_sets(rows: Iterable[Row]) -> set[str]:
    """The data sets whose test people are training people, which their judges say."""
    return {row.dataset for row in rows if row.method == JUDGES and row.metric == KNOWN_PEOPLE}


def table_2(rows: Sequence[Row]) -> pd.DataFrame:
    """The paper's Table 2 from ours: as the paper measures, as the judges see it, and the printed figures."""
    return _table([*rows, *_printed(rows)], list(EXPERIMENTS), OWN_2 | JUDGED_2)


def table_3(rows: Sequence[Row]) -> pd.DataFrame:
    """The paper's Table 3, our rows (one an identity source) and the printed figures."""
    known = {JUDGES, *EXPERIMENTS}
    printed = _printed(rows)
    methods = list(dict.fromkeys(row.method for row in [*rows, *printed] if row.method not in known))
    asked = {row.metric for row in rows}
    closed = {title: metric for title, metric in CLOSED_3.items() if metric in asked}
    return _table([*rows, *printed], methods, OWN_3 | JUDGED_3 | closed)


def _printed(rows: Sequence[Row]) -> list[Row]:
    return paper_rows(sorted({row.dataset for row in rows}))


def attack_table(rows: Sequence[Row]) -> pd.DataFrame:
    """What attackers find: a line a figure, a column a method; no lines where none was run."""
    return _figures(rows, ATTACKS, "attack")


def content_table(rows: Sequence[Row]) -> pd.DataFrame:
    """What is kept, how real it looks, and which exact factors can be read; as `attack_table`."""
    return _figures(rows, CONTENT, "what")


def code_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Bits against what is kept: a line a number of prototypes; no lines where it was not measured."""
    import pandas as pd

    found: dict[tuple[str, str, int], dict[str, Row]] = {}
    for row in rows:
        if match := re.fullmatch(rf"code_(\d+)_({'|'.join(CODES)})", row.metric):
            found.setdefault((row.dataset, row.method, int(match[1])), {})[match[2]] = row
    lines = [
        {"data": dataset, "method": method, "K": str(prototypes)}
        | {title: cell(by_figure.get(name)) for name, title in CODES.items()}
        for (dataset, method, prototypes), by_figure in found.items()
    ]
    return pd.DataFrame(lines, columns=["data", "method", "K", *CODES.values()])


def _figures(rows: Sequence[Row], prefixes: dict[str, str], title: str) -> pd.DataFrame:
    """Lines in the order of `prefixes`, columns in the order of the methods' first such figure."""
    import pandas as pd

    def place(metric: str) -> int:
        found = [index for index, prefix in enumerate(prefixes) if metric.startswith(prefix)]
        return found[-1] if found else -1

    left_out = {JUDGES, *EXPERIMENTS}
    chosen = [row for row in rows if row.method not in left_out and place(row.metric) >= 0]
    measured = {row.method for row in chosen if any(row.metric.startswith(prefix) for prefix in ATTACKS)}
    chosen = [row for row in chosen if row.method in measured] if measured else chosen
    cells = {(row.dataset, row.metric, row.method): row for row in chosen}
    methods = list(dict.fromkeys(row.method for row in chosen))
    names = list(prefixes.values())
    lines = [
        {"data": dataset, title: names[place(metric)], "figure": metric}
        | {method: cell(cells.get((dataset, metric, method))) for method in methods}
        for dataset, metric in sorted(
            dict.fromkeys((row.dataset, row.metric) for row in chosen), key=lambda at: (at[0], place(at[1]))
        )
    ]
    return pd.DataFrame(lines, columns=["data", title, "figure", *methods])


def _table(rows: Sequence[Row], methods: list[str], columns: dict[str, str]) -> pd.DataFrame:
    """One line a (dataset, method) with any of the columns, ours before the paper's; cells are text."""
    import pandas as pd

    cells = {(row.dataset, row.method, row.metric): row for row in rows}
    datasets = list(dict.fromkeys(row.dataset for row in rows))
    lines = []
    for dataset in datasets:
        for method in methods:
            found = {title: cells.get((dataset, method, metric)) for title, metric in columns.items()}
            if any(found.values()):
                lines.append({"data": dataset, "method": method} | {t: cell(row) for t, row in found.items()})
    return pd.DataFrame(lines, columns=["data", "method", *columns])


def cell(row: Row | None) -> str:
    """A figure as printed: ``.954 (.921-.978)``; why not, where it may not be given; a dash where not measured."""
    if row is None:
        return "-"
    if row.value is None:
        return without_value(row)
    if row.metric.endswith("_patients"):  # a count
        return f"{row.value:,.0f}"
    if row.ci_low is None or row.ci_high is None or row.ci_low == row.ci_high == row.value:
        return f"{row.value:.3f}"
    return f"{row.value:.3f} ({row.ci_low:.3f}-{row.ci_high:.3f})"


def without_value(row: Row) -> str:
    """What stands in a cell for a row without a value."""
    return next((why for why in ("no verdict", "no bound", NOT_APPLICABLE) if row.note.startswith(why)), "not measured")


def notes(rows: Iterable[Row]) -> list[str]:
    """Every reason for which a figure is missing, once."""
    return list(dict.fromkeys(row.note for row in rows if row.note and row.value is None))


def to_markdown(table: pd.DataFrame) -> str:
    """A table as GitHub's Markdown."""
    return str(table.to_markdown(index=False, disable_numparse=True))


def report(rows: Sequence[Row]) -> str:
    """All tables as one Markdown page, the judges first."""
    parts = ["## The judges, on untouched images", to_markdown(quality_table(rows))]
    parts += [f"**{note}**" for note in notes(rows)]
    parts += [CLOSED_SET] if closed_sets(rows) else []
    parts += [
        "## Table 2: disentanglement",
        to_markdown(table_2(rows)),
        "Identity accuracy as the paper defines it: own encoder, mean squared distance below the threshold, "
        "to the very image whose identity was kept or brought in; the first line of each data set is the paper's "
        "baseline on untouched images (balanced accuracy over pairs; false accepts). At own EER: the same at the "
        "distance where the encoder's two errors on untouched pairs are equal, for encoders of another scale than the "
        "paper's. Judges compare with *other* images of the patient. Intervals (95 %) draw patients.",
        "## Table 3: anonymisation",
        to_markdown(table_3(rows)),
        "Lines marked 'paper (...)' are the paper's printed figures: other images, other people; to be read beside "
        "ours, not against them.",
    ]
    if len(attacks := attack_table(rows)):
        parts += [
            "## Attacks",
            to_markdown(attacks),
            "The method `none` is the image itself. AUC: 0.5 is chance, below as telling as above. P2, P4 and "
            "P6 learn from released images of the training patients; all link test patients.",
        ]
    if len(content := content_table(rows)):
        parts += ["## Content, realism and exact factors", to_markdown(content)]
    if len(codes := code_table(rows)):
        parts += ["## What is kept under a code of K prototypes", to_markdown(codes)]
    return "\n\n".join(parts) + "\n"


def write_tables(rows: Sequence[Row], folder: str | Path) -> list[Path]:
    """Writes ``rows.jsonl``, ``report.md`` and a CSV of every table; returns what it wrote."""
    folder = Path(folder)
    written = [write_rows(rows, folder / "rows.jsonl"), folder / "report.md"]
    write_text(written[1], report(rows))
    tables = {"judges": quality_table(rows), "table_2": table_2(rows), "table_3": table_3(rows)}
    others = {"attacks": attack_table(rows), "content": content_table(rows), "codes": code_table(rows)}
    for name, table in (tables | others).items():
        path = folder / f"{name}.csv"
        path.unlink(missing_ok=True)  # what was measured into this folder before may not stand beside it
        if name in tables or len(table):
            table.to_csv(path, index=False)
            written.append(path)
    return written


def _without_nan(row: Row) -> Row:
    bounds = (row.value, row.ci_low, row.ci_high)
    value, low, high = (x if x is not None and math.isfinite(x) else None for x in bounds)
    return dataclasses.replace(row, value=value, ci_low=low, ci_high=high)
