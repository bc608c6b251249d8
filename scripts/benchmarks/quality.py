"""Time to quality: recipes of stage 1 trained side by side until independent judges find all bars met.

Every recipe is built from the bundle's own config and trained by its own engine, in turns of as many seconds in one
process, so that what else runs on the machine hits all alike; precision, layout and compilation are the same for all.
After a turn the averaged model is measured as Table 2 is, by judges that are trained apart (`monai_anon.evaluation`).
The seconds of a recipe are those of its trainings, the recogniser's among them: no start, no judging, no saving.

Schedules are shares of a training's length, which is therefore fixed beforehand and not by the budget: the quick run's
5 epochs, or the paper's 1,551 at its constant rate.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import quality_curves as curves
from benchmarks.quality_recipes import BUNDLE, NOT_FINITE, RECIPES, Candidate, Run, configuration, summary
from monai_anon.cohort import Cohort
from monai_anon.compute import Compute, described
from monai_anon.evaluation.evaluation import bundle_evaluation
from monai_anon.evaluation.judges import Judges, quality, verdict
from monai_anon.evaluation.protocol import Settings, evaluate_disentanglement
from monai_anon.evaluation.record import is_generated
from monai_anon.evaluation.tables import JUDGES
from monai_anon.evaluation.targets import draw_targets
from monai_anon.handlers import replacement_grid, save_picture
from monai_anon.networks import Latents
from monai_anon.readers import to_uint8
from monai_anon.whole_files import write_text

SHOWN = 10  # columns of a recipe's picture
RECORD, LINES = "run.json", "quality.jsonl"
FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} s of training"


def settings(run: Run, compute: Compute) -> dict[str, Any]:
    """Everything that a curve depends on and that a run which goes on must have in common with its beginning."""
    kept = ("seed", "manifest", "part", "size", "judge_steps", "device")
    found = {name: getattr(run, name) for name in kept} | {"turn_seconds": run.turn}
    found["compute"] = described(compute, torch.device(run.device)).split(" (change")[0]
    found["recipes"] = {name: summary(configuration(name, run, compute)) for name in run.recipes}
    return found


# ---- Judging ----


class Judging:
    """Measures a model on people whom nobody trained on, by the code and with the settings of `monai-anon evaluate`.

    Args:
        judges: trained on the training part, apart from any recipe.
        cohort: the images that they are asked about.
        settings: of Table 2; no intervals, which take minutes a check.
        generated: whether pictures may be drawn: the images are nobody's.

    Raises:
        ValueError: the verifier knows too little for any statement about persons.
    """

    def __init__(self, judges: Judges, cohort: Cohort, settings: Settings, generated: bool = False):
        self.judges, self.cohort, self.generated = judges, cohort, generated
        self.settings = dataclasses.replace(settings, n_bootstrap=0)
        self.quality = quality(judges, cohort, n_bootstrap=0)
        if silence := verdict(self.quality.get("verification_auc")):
            raise ValueError(f"{cohort.name}: {silence}")

    def __call__(self, model: Any) -> tuple[dict[str, float | None], dict[str, float | None]]:
        """Figures by the names of the bars (None: the cohort does not tell), and spreads of the latents by name."""
        rows = evaluate_disentanglement(model, self.cohort, self.judges, self.settings)
        value = {(row.method, row.metric): row.value for row in rows}
        figures = {name: value.get((bar.method, bar.metric)) for name, bar in curves.BARS.items()}
        return figures, {name: value[JUDGES, f"own_{name}_std"] for name in Latents._fields}

    @torch.no_grad()
    def draw(self, model: Any, path: Path) -> None:
        """Reconstructions and swaps of some images, where these are nobody's."""
        if not self.generated:
            return
        targets, _ = draw_targets(self.cohort.patient.numpy(), self.cohort.finding.numpy(), self.settings.seed)
        device = next(model.parameters()).device
        pairs = [self.cohort.batch(rows)["image"].to(device) for rows in (range(SHOWN), targets[:SHOWN])]
        save_picture(to_uint8(replacement_grid(model, *pairs)), path)


def judging_of(run: Run) -> Judging:
    """The judges of a run's manifest, read where they are trained already, on the part that is asked for."""
    overrides: dict[str, object] = {
        "manifest": run.manifest,
        "image_size": run.size,
        "judges_dir": str(run.judges or run.output),
        "verifier_steps": run.judge_steps,
        "medical_steps": run.judge_steps,
        "device": f"$torch.device('{run.device}')",
    }
    found = bundle_evaluation(BUNDLE, overrides)
    return Judging(found.train_judges(), found.cohort(run.part), found.settings, is_generated(found.manifest))


# ---- The comparison ----


def measure(run: Run, compute: Compute, progress: bool = True) -> dict[str, Any]:
    """Train and judge until every recipe has met all bars once or has had its budget; a run that was stopped goes on.

    Writes into `run.output`: `run.json` (settings), `quality.jsonl` (a line a check), `quality.png`, and for each
    recipe `RECIPE/checkpoint.pt` and, of generated images, `RECIPE/pictures.png`.

    Returns:
        settings, the judges' own figures, the bars, when they were met (`time_to_bars`), and the curves.

    Raises:
        FileExistsError: the folder holds something else.
    """
    made_with = settings(run, compute)
    refuse_other(run.output, made_with)
    write_text(run.output / RECORD, json.dumps(made_with, indent=2) + "\n")
    judging, lines = judging_of(run), read_lines(run.output)
    with Field(run, compute, progress, lines) as candidates:
        for check in range(1, run.checks + 1):
            if all(curves.time_to_bars(lines, name) for name in run.recipes):
                break
            for name in run.recipes[:: 1 if check % 2 else -1]:
                own = [line for line in lines if line["recipe"] == name]
                if own and (own[-1]["ended"] or own[-1]["check"] >= check):
                    continue
                candidates[name].train(check * run.turn)
                lines.append(checked(name, check, candidates[name], judging, run.output))
                write_text(run.output / LINES, "".join(json.dumps(line) + "\n" for line in lines))
                tqdm.write(curves.brief(lines[-1]), file=sys.stderr)
    curves.draw(lines, run.recipes, run.output / "quality.png")
    return made_with | {
        "budget_seconds": run.budget,
        "judged_images": len(judging.cohort),
        "judges_on_untouched_images": {name: found.value for name, found in judging.quality.items()},
        "bars": {name: str(bar) for name, bar in curves.BARS.items()},
        "time_to_bars": {name: curves.time_to_bars(lines, name) for name in run.recipes},
        "seconds_to_each_bar": {name: curves.time_to_each_bar(lines, name) for name in run.recipes},
        "curves": lines,
    }


class Field:
    """The candidates by name, each made when it is first asked for, and one progress bar over all their seconds."""

    def __init__(self, run: Run, compute: Compute, progress: bool, lines: Sequence[curves.Line] = ()):
        self.run, self.compute, self.made = run, compute, dict[str, Candidate]()
        self.seconds = dict.fromkeys(run.recipes, 0.0)
        self.bar = tqdm(total=run.budget * len(run.recipes), disable=not progress, bar_format=FORMAT)
        for line in lines:
            self.show(line["recipe"], line["seconds"])

    def __getitem__(self, name: str) -> Candidate:
        if name not in self.made:
            parser = configuration(name, self.run, self.compute)
            show = partial(self.show, name)
            self.made[name] = Candidate(parser, self.run.output / name, self.run.device, show)
        return self.made[name]

    def show(self, name: str, seconds: float) -> None:
        self.seconds[name] = min(seconds, self.run.budget)
        self.bar.set_description_str(name, refresh=False)
        self.bar.update(sum(self.seconds.values()) - self.bar.n)

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
        for candidate in self.made.values():
            candidate.close()


def checked(name: str, check: int, candidate: Candidate, judging: Judging, output: Path) -> dict[str, Any]:
    """One line of a curve: cost, judged figures, and what is wrong, if anything is."""
    clock, ended = candidate.clock, candidate.ended
    figures: dict[str, float | None] = dict.fromkeys(curves.BARS)
    spreads: dict[str, float | None] = {}
    if ended != NOT_FINITE:
        figures, spreads = judging(candidate.model)
        judging.draw(candidate.model, output / name / "pictures.png")
    return {
        "recipe": name,
        "check": check,
        "seconds": round(clock.seconds, 2),
        "cpu_seconds": round(clock.cpu_seconds, 2),
        "images": clock.images,
        "figures": figures,
        "met": curves.met(figures),
        "latent_std": spreads,
        "collapse": clock.collapse,
        "ended": ended,
        "load": round(os.getloadavg()[0], 2),
    }


def refuse_other(output: Path, made_with: Mapping[str, Any]) -> None:
    """A folder holds curves that are made with the same settings, and nothing else.

    Raises:
        FileExistsError: it holds something else, or curves made with other settings; names the first that differs.
    """
    if not (output / RECORD).exists():
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(f"{output} is there and holds no run of this command; give another --output")
        return
    found, wanted = json.loads((output / RECORD).read_text(encoding="utf-8")), json.loads(json.dumps(made_with))
    for name in wanted:
        if found.get(name) != wanted[name]:
            raise FileExistsError(
                f"{output / RECORD} says {name} = {json.dumps(found.get(name))}, this run has "
                f"{json.dumps(wanted[name])}: give the same, or another --output"
            )


def read_lines(output: Path) -> list[dict[str, Any]]:
    """The curves so far."""
    path = output / LINES
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def report(result: Mapping[str, Any], output: Path, as_json: bool) -> None:
    """Write `quality.json` and print it, or print the curves and what they say."""
    text = json.dumps(result, indent=2)
    write_text(output / "quality.json", text + "\n")
    if as_json:
        print(text)
        return
    lines, recipes = result["curves"], list(result["recipes"])
    print(f"{result['device']}, {result['compute']}; judged on {result['judged_images']} images")
    print(curves.table(lines, recipes), *curves.sentences(lines, recipes), sep="\n")
    print(f"wrote {output / 'quality.png'} and {output / 'quality.json'}")


def planned(run: Run, compute: Compute) -> list[str]:
    """What `measure` would do, a line each; reads configs only.

    Raises:
        FileExistsError: as `measure`.
    """
    made_with = settings(run, compute)
    refuse_other(run.output, made_with)
    lines = [f"would train in turns of {run.turn:g} s, up to {run.budget:g} s a recipe, {made_with['compute']}:"]
    for name, values in made_with["recipes"].items():
        lines.append(f"  {name}: {RECIPES[name].about} ({', '.join(f'{k} {v}' for k, v in values.items())})")
    where = run.manifest or "the generated cohort, made where absent"
    lines.append(f"would judge {where}, {run.part} part, after each turn, until all recipes have met all bars:")
    lines += [f"  {name}: {bar.title}, {bar}" for name, bar in curves.BARS.items()]
    return [*lines, f"would write into {run.output}, where {len(read_lines(run.output))} checks are done"]
