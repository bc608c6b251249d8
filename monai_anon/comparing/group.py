"""Trains and measures some systems, one after the other, in a process of its own.

    python -m monai_anon.comparing.group RUN NAME [NAME ...]

A system that fails leaves `failed.txt` and does not lose the next; exit code 1 tells of it.
"""

from __future__ import annotations

import functools
import logging
import sys
from pathlib import Path

import torch

from monai_anon.comparing.job import ATTACKS as CHOSEN_ATTACKS
from monai_anon.comparing.job import CONTENTS, read_comparison
from monai_anon.comparing.systems import ROWS, Budget, Trainings, config, made
from monai_anon.evaluation.attacks import ATTACKS
from monai_anon.evaluation.attacks.adaptive import adaptive
from monai_anon.evaluation.attacks.towers import Pairing
from monai_anon.evaluation.contents import CONTENT
from monai_anon.evaluation.evaluation import Evaluation
from monai_anon.evaluation.figures import choose_people
from monai_anon.evaluation.measuring import Measuring
from monai_anon.evaluation.record import is_generated, revision
from monai_anon.evaluation.scene import Scene
from monai_anon.evaluation.subjects import Subject
from monai_anon.evaluation.tables import Row, write_rows
from monai_anon.model_files import save_weights
from monai_anon.whole_files import write_text

FAILED, SAMPLE = "failed.txt", "sample.pt"
PEOPLE = 5
PAIRINGS: tuple[Pairing, ...] = ("released-real", "released-released")
"""Two of P2's four attackers: each is trained once for every system."""
logger = logging.getLogger("monai_anon")


class Bench:
    """Measures systems in one scene and writes down what comes of each."""

    def __init__(self, run: Path) -> None:
        self.run, self.comparison = run, read_comparison(run)
        self.evaluation: Evaluation = self.comparison.evaluation()
        self.scene: Scene = self.evaluation.scene(self.comparison.releases)
        self.measuring = Measuring(run / "measured", self.scene, self.evaluation.settings, revision())
        bundle, own = Path(self.comparison.bundle), self.comparison
        self.entries = own.entries()
        numbers = config(bundle, "", self.entries)
        budget = Budget(own.budget, own.batch_size, own.seed)
        self.trainings = Trainings(
            self.scene.training, budget, run / "trainings", numbers, device=self.evaluation.device
        )

    def subject(self, name: str) -> Subject:
        """A system, trained where it is not yet."""
        return self.trainings.subject(name, made(Path(self.comparison.bundle), name, self.entries))

    def measure(self, name: str) -> None:
        """Train and measure a system; its rows are written when all of them are there."""
        folder = self.run / "systems" / name
        module = made(Path(self.comparison.bundle), name, self.entries)
        subject = self.trainings.subject(name, module)
        attacks = ATTACKS | {"adaptive": functools.partial(adaptive, pairings=PAIRINGS)}
        plan = [(subject, attack, attacks[attack]) for attack in CHOSEN_ATTACKS]
        plan += [(subject, what, CONTENT[what]) for what in CONTENTS]
        rows = [*self.scene.quality_rows(), *self.measuring.run(plan)]
        bound = Row(name, self.scene.test.name, "proved", None, note=str(getattr(module, "proved", "")))
        self.sample(subject, folder)
        (folder / FAILED).unlink(missing_ok=True)
        write_rows([*rows, bound], folder / ROWS)

    def sample(self, subject: Subject, folder: Path) -> None:
        """Keep some releases for the sheet; of generated people only."""
        if not is_generated(self.evaluation.manifest):
            return
        test = self.scene.test
        people = torch.from_numpy(choose_people(test.patient.numpy(), test.finding.numpy(), count=PEOPLE))
        save_weights({"images": self.scene.released(subject, "test").images[people]}, folder / SAMPLE)


def measure_all(run: Path, names: list[str]) -> int:
    """Exit code: 1 where a system failed."""
    bench, failed = Bench(run), 0
    for name in names:
        folder = run / "systems" / name
        if (folder / ROWS).is_file():
            continue
        try:
            bench.measure(name)
        except Exception as error:
            logger.exception("%s failed", name)
            write_text(folder / FAILED, f"{type(error).__name__}: {error}\n")
            failed = 1
    return failed


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logger.setLevel(logging.INFO)
    sys.exit(measure_all(Path(sys.argv[1]), sys.argv[2:]))
