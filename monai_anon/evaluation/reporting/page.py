"""What the report says, in its order, from the rows of its runs; the template only sets it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import monai_anon
from monai_anon.evaluation import tables
from monai_anon.evaluation.aggregation import REFERENCE, Headline, aggregate, headlines, silences, withheld
from monai_anon.evaluation.reporting import conclusions
from monai_anon.evaluation.reporting import sections as report_sections
from monai_anon.evaluation.reporting import tables as report_tables
from monai_anon.evaluation.reporting.drawings import Drawings, Part
from monai_anon.evaluation.reporting.runs import NOT_RECORDED, Picture, Run, read_pictures
from monai_anon.evaluation.reporting.tables import Cell, Line, Table

REAL_PICTURES = "This page contains images of real patients: do not share it."
ENOUGH_SEEDS = 3  # evaluation.md: headline rows come from at least as many training seeds


class Page:
    """What the page says, from rows alone."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        raw = [row for run in runs for row in run.rows]
        self.silences = silences(raw)
        self.judged_silent = list(self.silences)
        raw = withheld(raw, self.silences)
        self.rows = aggregate(raw)
        self.headlines = headlines(raw)
        self.datasets = list(dict.fromkeys(row.dataset for row in self.rows))
        for dataset in self.datasets:
            of_subjects = (one for one in self.headlines if one.dataset == dataset and one.method in self.subjects())
            attacked = any(one.privacy for one in of_subjects)
            if dataset not in self.silences and not attacked:
                self.silences[dataset] = "no verdict: no attack on persons was run"
        curves = [curve for run in runs if self._speaks(run) for curve in run.curves]
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
            "provenance": self.provenance(),
            "joined": self.joined(),
            "quality": report_tables.quality_table(self.rows),
            "headline": report_tables.headline_table(self.headlines, self.silences),
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
        }

    # ---- first of all ----

    def subjects(self) -> list[str]:
        """What the runs are about: as they record it, else every method with a headline beside the reference."""
        named = [name for run in self.runs if (name := run.get("subject", "name")) != NOT_RECORDED]
        return list(dict.fromkeys(map(str, named or [o.method for o in self.headlines if o.method != REFERENCE])))

    def verdicts(self) -> Iterator[dict[str, str]]:
        """One line a subject and data set with a verdict, and whether any criterion fails."""
        for one in self.headlines:
            if one.method not in self.subjects() or one.dataset in self.silences:
                continue
            found = conclusions.criteria(self.rows, one.method, one.dataset)
            where = f" on {one.dataset}" if len(self.datasets) > 1 else ""
            outcomes = ", ".join(f"{each.name.lower()}: {conclusions.WORDS[each.outcome]}" for each in found)
            yield {
                "text": f"{one.method}{where}: {conclusions.privacy_line(one)}; {self._finding_line(one)}.",
                "outcomes": f"The three criteria of anonymity: {outcomes}.",
                "kind": "warning" if any(each.outcome == "fails" for each in found) else "verdict",
            }

    def _finding_line(self, one: Headline) -> str:
        if one.finding is None:
            return "the finding was not measured"
        judge = self.drawings.judged_finding(one.dataset)
        untouched = "" if judge is None else f", on untouched images {judge:.3f}"
        return f"finding AUC {conclusions.figure(one.finding)}{untouched}"

    def provenance(self) -> Table:
        """What was trained on what: one column a run."""
        entries = [
            ("cohort", [str(run.get("cohort", "name")) for run in self.runs]),
            ("images", [_generated(run) for run in self.runs]),
            ("size", [_size(run) for run in self.runs]),
            ("findings", [_plain(run.get("cohort", "classes")) for run in self.runs]),
            ("parts", [_parts(run) for run in self.runs]),
            ("anonymizer", [str(run.get("subject", "name")) for run in self.runs]),
            ("digest of its weights", [str(run.get("subject", "weights")) for run in self.runs]),
            ("images seen in its training", [_plain(run.get("subject", "images_seen")) for run in self.runs]),
            ("bundle", [str(run.get("bundle")) for run in self.runs]),
            *((name, [_plain(run.get("settings", name)) for run in self.runs]) for name in self._names("settings")),
            ("seconds", [_plain(run.get("seconds"), "\n") for run in self.runs]),
            *((name, [_plain(run.get(name)) for run in self.runs]) for name in ("versions", "revision", "created")),
            ("machine", [_plain(run.get("machine")) for run in self.runs]),
            ("command", [run.command for run in self.runs]),
        ]
        columns = ["", *("run" if len(self.runs) == 1 else f"run {number}" for number in range(1, len(self.runs) + 1))]
        lines = [Line([Cell(name), *map(Cell, values)]) for name, values in entries]
        return Table("What was trained and measured on what", columns, lines)

    def _names(self, entry: str) -> list[str]:
        found = [run.get(entry) for run in self.runs]
        return list(dict.fromkeys(name for names in found if isinstance(names, dict) for name in names))

    def joined(self) -> str:
        """How several runs became one set of figures; empty where nothing was joined."""
        seeds = max(row.seeds for row in self.rows)
        if seeds == 1:
            return ""
        return (
            f"Where a method was trained with several seeds (up to {seeds} here), a value is the mean of theirs, and "
            "its interval goes from the lowest lower to the highest upper bound."
        )

    # ---- tables ----

    def part(self, section: report_sections.Section) -> Part | None:
        """A section with its tables; None where it has none."""
        found = [table for group in section.groups if (table := report_tables.group_table(self.rows, group))]
        return Part(section.key, section.title, section.sentence, found) if found else None

    def attacks(self) -> list[Part]:
        """P1 to P8 with their figures, whether they were run or not, then the attackers' curves."""
        parts = []
        for section in report_sections.ATTACKS:
            part = self.part(section)
            sentence = section.sentence if part else f"{section.sentence} This attack was not run."
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
        frames = {
            "Table 2: disentanglement": (tables.table_2(self.rows), tables.OWN_2 | tables.JUDGED_2),
            "Table 3: anonymisation": (tables.table_3(self.rows), tables.OWN_3 | tables.JUDGED_3),
        }
        silent = set(self.datasets) <= set(self.silences)
        return [
            report_tables.frame_table(caption, report_tables.without_persons(frame, titles) if silent else frame)
            for caption, (frame, titles) in frames.items()
            if set(frame["data"]) - {tables.PAPER}
        ]

    # ---- what follows ----

    def concluded(self) -> Iterator[dict[str, Any]]:
        """The three criteria of every subject and data set with a verdict."""
        for dataset in self.datasets:
            for one in self.headlines:
                if one.dataset == dataset and one.method in self.subjects() and dataset not in self.silences:
                    found = conclusions.criteria(self.rows, one.method, dataset)
                    yield {"method": one.method, "dataset": dataset, "criteria": found}

    def limits(self) -> list[str]:
        """What may not be concluded, whatever the figures are."""
        found = [
            "That images are anonymous: an attack shows what one attacker finds with one budget; no measurement proves "
            "that no other finds more."
        ]
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
        commands = list(dict.fromkeys(run.command for run in self.runs))
        every = "\n".join(commands)
        folders = " ".join(f"RUN{n}" if len(self.runs) > 1 else "RUN" for n in range(1, len(self.runs) + 1))
        titles = ["The judges' own quality", "Headline figures and their plot"]
        titles += [part.title for part in self.attacks() if part.tables or part.figures]
        titles += [part.title for section in report_sections.CONTENT if (part := self.part(section))]
        titles += [table.caption for table in self.paper()]
        lines = [Line([Cell(title), Cell(every)]) for title in titles]
        lines += [Line([Cell(f"Picture: {picture.title}"), Cell(picture.command)]) for picture in pictures]
        lines.append(Line([Cell("This page"), Cell(f"monai-anon report {folders}")]))
        return Table("Commands", ["table or figure", "made again by"], lines)


def _generated(run: Run) -> str:
    found = run.get("cohort", "generated")
    return NOT_RECORDED if found == NOT_RECORDED else "generated phantoms" if found is True else "real images"


def _size(run: Run) -> str:
    size, channels = run.get("cohort", "image_size"), run.get("cohort", "channels")
    return NOT_RECORDED if NOT_RECORDED in (size, channels) else f"{size} x {size} pixels, {channels} channel(s)"


def _parts(run: Run) -> str:
    parts = run.get("cohort", "parts")
    if not isinstance(parts, Mapping):
        return NOT_RECORDED
    counts = {name: part if isinstance(part, Mapping) else {} for name, part in parts.items()}
    return "; ".join(
        f"{name}: {part.get('images', '?')} images of {part.get('patients', '?')} patients"
        for name, part in counts.items()
    )


def _plain(found: Any, between: str = ", ") -> str:
    """An entry of `run.json` as text."""
    if isinstance(found, Mapping):
        return between.join(f"{name} {_plain(value)}" for name, value in found.items()) or "none"
    if isinstance(found, Sequence) and not isinstance(found, str):
        return between.join(map(_plain, found)) or "none"
    if isinstance(found, bool) or not isinstance(found, int | float):
        return str(found)
    return f"{found:,}" if isinstance(found, int) else f"{found:.4g}"
