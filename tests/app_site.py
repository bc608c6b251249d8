"""A site for the shipped model, with judges that are trained for a minute, for the applications' tests."""

from __future__ import annotations

from pathlib import Path

from monai_anon.bundles import load_anonymizer
from monai_anon.evaluation.judge_training import JudgeSchedule
from monai_anon.evaluation.judges import judges_for
from monai_anon.manifest import load_manifest
from monai_anon.phantoms import load_phantom
from monai_anon.site import judges_file, make_site, people_of

BUNDLE = Path(__file__).parents[1] / "bundles" / "chest"
PARTS, PATIENTS = (600, 160, 160), (150, 80, 80)


def write_site(folder: Path, rate: float, seed: int = 7) -> tuple[Path, Path]:
    """A generated cohort and the site of its people, below a folder."""
    cohort, site = folder / "cohort", folder / "site"
    load_phantom("chest").write_cohort(cohort, seed, 64, PARTS, PATIENTS)
    schedule = JudgeSchedule(verifier_steps=40, batch_size=64)
    judges_for(load_manifest(cohort), 64, 1, folder / "judges", schedule=schedule, progress=False)
    network, said = load_anonymizer(BUNDLE, settings={"policy": "latents"})
    people = people_of(str(cohort), None, 64, 1, progress=False)
    make_site(site, network, said.model_file, judges_file(folder / "judges"), people, rate, progress=False)  # type: ignore[arg-type]
    return cohort, site
