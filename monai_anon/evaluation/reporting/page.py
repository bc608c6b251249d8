"""What the report says, in its order, from the rows of its runs; the template only sets it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import monai_anon
from monai_anon.evaluation import tables
from monai_anon.evaluation.aggregation import REFERENCE, Headline, aggregate, attacked, headlines, withheld
from monai_anon.evaluation.aggregation import silences as silences_of
from monai_anon.evaluation.people import NOT_APPLICABLE
from monai_anon.evaluation.reporting import conclusions, passing, provenance
from monai_anon.evaluation.reporting import sections as report_sections
from monai_anon.evaluation.reporting import tables as report_tables
from monai_anon.evaluation.reporting.checks import figure
from monai_anon.evaluation.reporting.drawings import Drawings, Part
from monai_anon.evaluation.reporting.joining import kept_apart
from monai_anon.evaluation.reporting.runs import Picture, Run, read_pictures
from monai_anon.evaluation.reporting.tables import Table

REAL_PICTURES = "This page contains images of real patients: do not share it."
ENOUGH_SEEDS = 3  # evaluation.md: headline rows come from at least as many training seeds


class Page:
    """What the page says, from rows alone."""

    def __init__(self, runs: Sequence[Run]) -> None:
        joined = kept_apart(runs)
        self.runs, self.apart = joined.runs, joined.apart
        every = [row for run in self.runs for row in run.rows]
        self.silences = silences_of(every)
        self.judged_silent = list(self.silences)
        self.raw = withheld(every, self.silences)
        self.rows = aggregate(self.raw)
        self.headlines = headlines(self.raw)
        self.datasets = list(dict.fromkeys(row.dataset for row in self.rows))
        self.closed = tables.closed_sets(every)
        told = {row.dataset for row in self.raw if row.method in self.subjects() and attacked(row)}
        for dataset in self.datasets:
            if dataset not in self.silences and dataset not in told:
                self.silences[dataset] = "no verdict: no attack on persons was run"
        curves = [curve for run in self.runs if self._speaks(run) for curve in run.curves]
        self.drawings = Drawings(self.rows, self.headlines, self.silences, curves)

    @property
    def silence(self) -> str:
        """Why there is no privacy verdict, by data set where there are several."""
        if len(self.datasets) == 1:
            return next(iter(self.silences.values()), "")
        return "; ".join(f"{dataset}: {why}" for dataset, why in self.silences.items())

    def content(self, pictures: bool) -> dict[str, Any]:
        """Everything that the template names."""
        shown = self.pictures(pictures)
        return {
            "title": f"Evaluation of {', '.join(self.subjects()) or 'an anonymizer'}",
            "version": monai_anon.__version__,
            "silences": self.silences,
            "withheld": self.judged_silent,
            "several_data": len(self.datasets) > 1,
            "verdicts": list(self.verdicts()),
            "provenance": provenance.made_on(self.runs),
            "passes": passing.in_words(self.raw, self.subjects()),
            "seconds": provenance.seconds(self.runs),
            "joined": self.joined(),
            "quality": report_tables.quality_table(self.rows),
            "headline": report_tables.headline_tables(self.headlines, self.silences, self.chances()),
            "overview": self.drawings.overview(),
            "attacks": self.attacks(),
            "content": [part for section in report_sections.CONTENT if (part := self.part(section))],
            "paper": self.paper(),
            "everything": report_tables.all_figures(self.rows),
            "concluded": list(self.concluded()),
            "words": conclusions.WORDS,
            "limits": self.limits(),
            **shown,
            "commands": self.commands(shown["pictures"]),
            "doubts": provenance.doubts(self.raw),
        }

    # ---- first of all ----

    def subjects(self) -> list[str]:
        """What the runs are about: as they record it, else every method with a headline beside the reference."""
        named = [name for run in self.runs for name in run.subjects]
        return list(dict.fromkeys(named or [one.method for one in self.headlines if one.method != REFERENCE]))

    def judged(self) -> Iterator[tuple[Headline, list[conclusions.Criterion]]]:
        """Every subject and data set with a verdict, and the three criteria for it."""
        for one in self.headlines:
            if one.method in self.subjects() and one.dataset not in self.silences:
                yield one, conclusions.criteria(self.raw, one.method, one.dataset)

    def verdicts(self) -> Iterator[dict[str, str]]:
        """One box a subject and data set with a verdict: reassuring only where all three criteria found nothing."""
        for one, found in self.judged():
            where = f" on {one.dataset}" if len(self.datasets) > 1 else ""
            outcomes = {each.outcome for each in found}
            told = ", ".join(f"{each.name.lower()}: {conclusions.WORDS[each.outcome]}" for each in found)
            missing = self.without_figure(one)
            kind = "warning" if outcomes & {"fails", "sign"} else "verdict" if outcomes == {"chance"} else "neutral"
            yield {
                "text": f"{one.method}{where}: {conclusions.privacy_line(one)}; {self._finding_line(one)}.",
                "missing": f"Not run, or without a figure: {', '.join(missing)}." if missing else "",
                "outcomes": f"The three criteria of anonymity: {told}.",
                "kind": kind,
            }

    def without_figure(self, one: Headline) -> list[str]:
        """The attacks that say nothing of a method."""
        measured = [row for row in self.rows if (row.dataset, row.method) == (one.dataset, one.method)]
        found = [
            row.metric
            for row in measured
            if (row.value is not None and "chance" not in row.metric) or row.note.startswith(NOT_APPLICABLE)
        ]
        return [
            section.title
            for section in self.attack_sections(one.dataset)
            if not any(re.fullmatch(group.pattern, metric) for group in section.groups for metric in found)
        ]

    def attack_sections(self, dataset: str = "") -> list[report_sections.Section]:
        """P1 to P10, the last only where there is a closed set (of that name), or something is said of it."""
        closed = dataset in self.closed if dataset else bool(self.closed)
        closed |= any(row.metric.startswith("identification_") for row in self.rows)
        return [section for section in report_sections.ATTACKS if closed or section.key != "P10"]

    def _finding_line(self, one: Headline) -> str:
        if one.finding is None:
            return "the finding was not measured"
        judge = self.drawings.judged_finding(one.dataset)
        untouched = "" if judge is None else f", on untouched images {judge:.3f}"
        return f"finding AUC {figure(one.finding)}{untouched}"

    def chances(self) -> dict[str, float]:
        """Rank-1 of a guess among the test patients, by data set."""
        found = [row for row in self.rows if row.method == tables.JUDGES and row.metric == "rank_1_chance"]
        return {row.dataset: row.value for row in found if row.value is not None}

    def joined(self) -> list[str]:
        """How several runs became one set of figures, and what was not joined."""
        seeds = max(row.seeds for row in self.rows)
        if seeds == 1:
            return list(self.apart)
        return [
            f"Where a method was trained with several seeds (up to {seeds} here), a value is the mean of theirs, and "
            "its interval goes from the lowest lower to the highest upper bound. What is concluded is concluded of "
            "each seed by itself, and the worst counts.",
            *self.apart,
        ]

    # ---- tables ----

    def part(self, section: report_sections.Section) -> Part | None:
        """A section with its tables; None where it has none."""
        found = [table for group in section.groups if (table := report_tables.group_table(self.rows, group))]
        figures = self.drawings.of_content(section.key)
        return Part(section.key, section.title, self.sentence(section), found, figures) if found else None

    def sentence(self, section: report_sections.Section) -> str:
        """What a section asks, and what a closed set changes where there is one."""
        if not (self.closed and section.closed):
            return section.sentence
        which = "" if set(self.datasets) <= self.closed else f" ({', '.join(sorted(self.closed))})"
        return f"{section.sentence} In a closed set{which}: {section.closed}"

    def attacks(self) -> list[Part]:
        """P1 to P10 with their figures, whether they were run or not, then the attackers' curves."""
        parts = []
        for section in self.attack_sections():
            part = self.part(section)
            sentence = self.sentence(section) + ("" if part else " This attack was not run.")
            found = part.tables if part else []
            parts.append(Part(section.key, section.title, sentence, found, self.drawings.of_attack(section.key)))
        if figures := self.drawings.curves():
            sentence = "Every point is one threshold of the attacker; the dotted diagonal is chance."
            parts.append(Part("curves", "Attack curves", sentence, [], figures))
        return parts

    def _speaks(self, run: Run) -> bool:
        return not any(row.dataset in self.silences for row in run.rows)

    def paper(self) -> list[Table]:
        """The paper's Tables 2 and 3, with its printed figures; without a verdict no column about persons."""
        rows = [report_tables.as_printed(row) for row in self.rows]
        frames = {
            "Table 2: disentanglement": (tables.table_2(rows), tables.OWN_2 | tables.JUDGED_2),
            "Table 3: anonymisation": (tables.table_3(rows), tables.OWN_3 | tables.JUDGED_3 | tables.CLOSED_3),
        }
        silent = set(self.datasets) <= set(self.silences)
        return [
            report_tables.frame_table(caption, report_tables.without_persons(frame, titles) if silent else frame)
            for caption, (frame, titles) in frames.items()
            if set(frame["data"]) - tables.PAPERS
        ]

    # ---- what follows ----

    def concluded(self) -> Iterator[dict[str, Any]]:
        """The three criteria of every subject and data set with a verdict."""
        for one, found in self.judged():
            yield {"method": one.method, "dataset": one.dataset, "criteria": found}

    def limits(self) -> list[str]:
        """What may not be concluded, whatever the figures are."""
        found = [
            "That images are anonymous: an attack shows what one attacker finds with one budget; no measurement proves "
            "that no other finds more.",
            "That a released image is no longer health data: the finding is health data, and is released on purpose.",
            "That the release is anonymous for whoever keeps the originals: as long as they are kept, the same opinion "
            "(WP 216) regards what is made of them as personal data.",
            "Small differences: intervals draw patients only; another release or another attacker's seed moves an AUC "
            "by about .03.",
            "An error rate: several attacks are looked at and the strongest counts, without correction. That errs to "
            "the safe side: a leak may be called where there is none.",
        ]
        if passing.bounded(self.raw, self.subjects()):
            found.append(passing.NOT_COVERED)
        if self.closed:
            found.append(
                "Anything about people who are not in the training part, from a closed set. " + tables.CLOSED_SET
            )
        if self.silences:
            found.append(
                "Anything about privacy where there is no verdict: neither that it is kept nor that it is not."
            )
        if any(run.generated for run in self.runs):
            found.append("Anything about real patients from generated images: those figures are about phantoms.")
        if not all(run.generated for run in self.runs):
            found.append("Anything about patients of another place, device or disease than those of the test part.")
        seeds = [one.privacy.seeds for one in self.headlines if one.privacy and one.method in self.subjects()]
        if seeds and min(seeds) < ENOUGH_SEEDS:
            found.append(
                f"How much another training run would differ: headline figures come from {min(seeds)} training "
                f"seed{'s' if min(seeds) > 1 else ''}, and at least {ENOUGH_SEEDS} are needed to tell."
            )
        return found

    def pictures(self, shown: bool) -> dict[str, Any]:
        """The pictures, or why there are none, and the warning where they may show patients."""
        pictures: list[Picture] = []
        missing: list[str] = []
        for run in self.runs if shown else ():
            found, absent = read_pictures(run)
            pictures, missing = pictures + found, missing + absent
        if not shown:
            missing.append(
                "Pictures are left out: not every cohort here is known to be generated, so they may show patients."
            )
        elif not pictures and not missing:
            missing.append("The runs hold no pictures.")
        real = bool(pictures) and not all(run.generated for run in self.runs)
        return {"pictures": pictures, "missing_pictures": missing, "warning": REAL_PICTURES if real else ""}

    def commands(self, pictures: Sequence[Picture]) -> Table:
        """For every table and figure the command that makes it again."""
        titles = ["The judges' own quality", "Headline figures and their plots"]
        titles += [part.title for part in self.attacks() if part.tables or part.figures]
        titles += [part.title for section in report_sections.CONTENT if (part := self.part(section))]
        titles += [table.caption for table in self.paper()]
        return provenance.commands(self.runs, titles, {picture.title: picture.command for picture in pictures})
