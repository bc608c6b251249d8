"""All measurements of one anonymizer on one manifest: what `evaluate.json` and `monai-anon evaluate` run."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.baselines import BASELINES
from monai_anon.channel import LEVELS, Channel
from monai_anon.cohort import Cohort
from monai_anon.engines import StepTrainer
from monai_anon.evaluation.aggregation import silences, withheld
from monai_anon.evaluation.attacks import ATTACKS
from monai_anon.evaluation.attacks.headline import headline
from monai_anon.evaluation.attacks.identification import identified
from monai_anon.evaluation.contents import CONTENT
from monai_anon.evaluation.contents.factors import factor_tables
from monai_anon.evaluation.figures import draw_figures, draw_releases
from monai_anon.evaluation.judges import SCHEDULE, Judges, JudgeSchedule, judges_for
from monai_anon.evaluation.measuring import Measuring, cohort_digest
from monai_anon.evaluation.policy_sheet import draw_policies
from monai_anon.evaluation.protocol import IdentitySource, Settings, evaluate_anonymization, evaluate_disentanglement
from monai_anon.evaluation.record import is_generated, revision, run_record, typed_command
from monai_anon.evaluation.scene import RELEASES, Measure, Scene
from monai_anon.evaluation.subjects import Subject, load_subject, subject_of, trained_subject
from monai_anon.evaluation.tables import JUDGES, Row, report, stamp, write_tables
from monai_anon.evaluation.targets import NoTargetError
from monai_anon.identities import AveragedIdentities, Gallery, IdentityPairs, SampledIdentities, build_gallery
from monai_anon.identity_vae_step import IdentityVAEStep
from monai_anon.manifest import load_manifest
from monai_anon.networks import Disentangler, IdentityVAE
from monai_anon.optimisation import Optimisation
from monai_anon.preconditions import unwrapped
from monai_anon.whole_files import write_text

OURS = "VAE with privacy loss"
logger = logging.getLogger("monai_anon")


@dataclasses.dataclass(frozen=True)
class Places:
    """Where results go.

    Args:
        output_dir: gets `rows.jsonl`, `report.md`, one CSV a table, `run.json`, `curves.json` and pictures.
        judges_dir: keeps the judges, decoded images (`cache/`) and every measurement (`measured/`) for the next time.
        pictures: draw test images of real people, too; those of generated cohorts always are.
        bundle: whose evaluation it is, for the record.
    """

    output_dir: str
    judges_dir: str
    pictures: bool = False
    bundle: str = ""


class Evaluation:
    """Measures an anonymizer on the test part of a manifest: the paper's tables, attacks, content and exact factors.

    Args:
        model: networks with the weights of `model_file` still to be loaded.
        model_file: tensors only, as stage 2 writes it.
        manifest: path of the manifest.
        places: where results go.
        settings: what to measure, and how.
        schedule: budget of the judges.
        anonymizer: `package.module:Class` to measure in place of the model; "" for the model.
    """

    def __init__(
        self,
        model: LatentSwapAnonymizer,
        model_file: str,
        manifest: str,
        places: Places,
        settings: Settings,
        schedule: JudgeSchedule = SCHEDULE,
        anonymizer: str = "",
        device: str | torch.device = "cpu",
    ):
        self.model, self.model_file, self.manifest = model, Path(model_file), load_manifest(manifest)
        self.output_dir, self.judges_dir = Path(places.output_dir), Path(places.judges_dir)
        self.places, self.settings = places, settings
        self.schedule, self.anonymizer, self.device = schedule, anonymizer, torch.device(device)
        encoder = model.disentangler.encoder
        self._plain_vae: IdentityVAE | None = None
        self.size, self.channels = int(encoder.size), int(encoder.channels)

    def train_judges(self) -> Judges:
        """The judges of this manifest: read from `judges_dir` when there, else trained on its training part."""
        return judges_for(
            self.manifest, self.size, self.channels, self.judges_dir, schedule=self.schedule, device=self.device
        )

    def cohort(self, part: str) -> Cohort:
        """The images of a part, read once and cached."""
        return Cohort.from_manifest(self.manifest, part, self.size, self.channels, cache_dir=self.judges_dir / "cache")

    def subject(self) -> Subject:
        """Who is measured: the class that was named, fitted where it asks for it, or the bundle's model.

        Raises:
            FileNotFoundError: there is no model; names the commands that make one.
        """
        if self.anonymizer:
            training = functools.partial(self.cohort, "training")
            return load_subject(self.anonymizer, self.channels, self.size, self.device, training)
        return trained_subject(method_name(self.model.channel), self.model, self.model_file, self.device)

    def scene(self, turns: int = RELEASES) -> Scene:
        """Data, judges and budget, the same for every subject; `turns` is how often each image is released."""
        scene = Scene(
            self.cohort("training"),
            self.cohort("validation") if self.manifest.parts.get("validation") else None,
            self.cohort("test"),
            self.train_judges(),
            steps=self.settings.attack_steps,
            schedule=self.schedule,
            seed=self.settings.seed,
            n_bootstrap=self.settings.n_bootstrap,
            device=self.device,
            closed_set=self.manifest.closed_set,
            turns=turns,
        )
        parts = {name: scene.part(name) for name in ("training", "validation", "test")}
        scene.factors = factor_tables(self.manifest.path.parent, parts)
        return scene

    def plan(self, subject: Subject) -> list[tuple[Subject, str, Measure]]:
        """Every measurement of a run: the paper's tables first, then all others on `none` and on the subject."""
        chosen = {name: ATTACKS[name] for name in self.settings.attacks}
        chosen |= {name: CONTENT[name] for name in self.settings.content}
        reference = subject_of("none", BASELINES["none"]())
        plan: list[tuple[Subject, str, Measure]] = []
        if subject.networks is not None:
            plan += [(subject, "Table 2", self.table_2), (subject, "Table 3", self.table_3)]
        for one in (reference, subject) if subject.weights != reference.weights else (reference,):
            plan += [(one, name, measure) for name, measure in chosen.items()]
        return plan

    def run(self) -> list[Row]:
        """Measure what is not measured yet, write the files, print the tables, return the rows.

        Raises:
            FileExistsError: the folder holds the run of another anonymizer, or on another cohort.
        """
        began, subject = time.monotonic(), self.subject()
        refuse_other(self.output_dir, "subject", "name", subject.name)
        scene = self.scene()
        refuse_other(self.output_dir, "cohort", "fingerprint", cohort_digest(scene))
        logger.info("measuring %s on %d test images of %d people", subject.name, len(scene.test), scene.people)
        measuring = Measuring(self.judges_dir / "measured", scene, self.settings, revision())
        rows = stamp(scene.quality_rows(), revision=revision()) + measuring.run(self.plan(subject))
        # Table 3 and the content of our own model share some figures; one value a figure.
        rows = list({(row.method, row.dataset, row.metric): row for row in reversed(rows)}.values())[::-1]
        for name in dict.fromkeys(row.method for row in rows):
            rows += headline([row for row in rows if row.method == name])
        rows = withheld(rows, silences(rows))
        seconds = time.monotonic() - began
        record = run_record(self.places.bundle, self.manifest, subject, self.settings, measuring, seconds)
        curves = [] if scene.silence else [c for found in measuring.results.values() for c in found.curves]
        for name, content in (("run.json", record), ("curves.json", curves)):
            write_text(self.output_dir / name, json.dumps(content, indent=1) + "\n")
        for path in write_tables(rows, self.output_dir):
            logger.info("wrote %s", path)
        self.draw(subject, scene)
        print(report(rows))
        return rows

    def table_2(self, subject: Subject, scene: Scene) -> list[Row]:
        """The paper's Table 2, by its own networks and by the judges; it swaps findings, so it needs two."""
        assert subject.networks is not None
        try:
            rows = evaluate_disentanglement(subject.networks.disentangler, scene.test, scene.judges, self.settings)
        except NoTargetError as error:
            original = dataclasses.replace(subject, name="reconstruction")
            return [scene.silent(original, "ssim_original", f"not measured: {error}")]
        return [row for row in rows if row.method != JUDGES or row.metric not in scene.quality]

    def table_3(self, subject: Subject, scene: Scene) -> list[Row]:
        """Our rows of the paper's Table 3."""
        assert subject.networks is not None
        disentangler = subject.networks.disentangler
        sources = self.sources(disentangler, build_gallery(disentangler, scene.training))
        arguments = disentangler, sources, scene.training, scene.test, scene.judges, self.settings
        if not scene.closed_set:
            return evaluate_anonymization(*arguments)

        def named(method: str, generated: Tensor) -> list[Row]:
            return identified(Subject(method, subject.anonymise, subject.weights), scene, generated)

        return evaluate_anonymization(*arguments, known=scene.known, also=named)

    def draw(self, subject: Subject, scene: Scene) -> None:
        """A sheet of the policies, Figures 4 to 7 of the paper and an explanation; of others what they release."""
        folder = self.output_dir / "pictures"
        if not (self.places.pictures or is_generated(self.manifest)):
            logger.info("no pictures: the test images are of real people; --pictures draws them")
            return
        if subject.networks is None:
            draw_releases(subject, scene.test, folder, seed=scene.seed, command=typed_command())
            return
        draw_policies(subject.networks, scene.test, folder, seed=scene.seed, command=typed_command())
        gallery = build_gallery(subject.networks.disentangler, scene.training)
        plain = self.plain_vae(gallery)
        options: dict[str, Any] = {"numbers": (0, 4, 5, 6, 7), "seed": scene.seed, "command": typed_command()}
        options["known"] = scene.known
        try:
            draw_figures(subject.networks, plain, scene.test, gallery, folder, **options)
        except NoTargetError as error:
            logger.warning("no figures of Table 2's kind: %s", error)

    def plain_vae(self, gallery: Gallery) -> IdentityVAE:
        """A VAE of the same shape without the privacy loss, fitted on the same latents: a row of Table 3."""
        if self._plain_vae is None:
            torch.manual_seed(self.settings.seed)
            like = self.model.identity_vae
            vae = IdentityVAE(like.identity_size, like.latent_size, unit_identity=like.unit_identity)
            step = IdentityVAEStep(vae, {"reconstruction": 1.0, "kl": 0.01}, Optimisation(lr=1e-3))
            batches, seed = IdentityPairs(gallery, seed=self.settings.seed), self.settings.seed
            StepTrainer("cpu", self.settings.plain_vae_epochs, batches, step, seed=seed).run()
            smoothed = step.updater.smoothed
            assert isinstance(smoothed, IdentityVAE)
            self._plain_vae = smoothed
        return self._plain_vae

    def sources(self, disentangler: Disentangler, gallery: Gallery) -> dict[str, IdentitySource]:
        """Our rows of Table 3. The plain VAE is fitted here, on the same latents."""
        unit = bool(disentangler.encoder.unit_identity)
        plain = self.plain_vae(gallery)
        sources: dict[str, IdentitySource] = {
            OURS: SampledIdentities(self.model.identity_vae),
            "VAE (plain)": SampledIdentities(plain),
        }
        patients = len(gallery.patient.unique())
        for k in (6, 12):
            if k < patients:
                sources[f"averaging {k} identities"] = AveragedIdentities(gallery, k, unit)
        return sources | {"averaging all identities": AveragedIdentities(gallery, None, unit)}


def method_name(channel: Channel) -> str:
    """What the model is called in tables: under the policy `latents` the paper's name, else what passes."""
    if channel.policy == "latents":
        return OURS
    if channel.policy == "residual":
        return "drawn residual"
    noisy = f", epsilon {channel.epsilon:g}" if channel.epsilon else ""
    return f"code of {LEVELS[channel.level]}{noisy}"


def refuse_other(folder: Path, what: str, key: str, value: str) -> None:
    """A folder holds the run of one anonymizer on one cohort; a new training of it replaces the old one's tables.

    Raises:
        FileExistsError: it holds that of another.
    """
    record = folder / "run.json"
    if not record.is_file():
        return
    found = json.loads(record.read_text(encoding="utf-8")).get(what, {}).get(key, value)
    if found != value:
        other = f"the run of {found!r}, not of {value!r}" if key == "name" else f"a run on another {what}"
        raise FileExistsError(f"{folder} holds {other}; give another --output")


def planned(bundle: Path, overrides: dict[str, object]) -> list[str]:
    """What an evaluation would do, a line each; reads the config only.

    Raises:
        ValueError: an attack or a measurement of content that does not exist.
    """
    content = evaluate_config(bundle, overrides)
    settings = Settings(content["hit_threshold"], attacks=content["attacks"], content=content["content"])
    chosen = {name: content[name] for name in ("policy", "prototypes", "epsilon")}
    who = content["anonymizer"] or method_name(Channel((1, 1, 1), **chosen))
    own = [] if content["anonymizer"] else [f"{who}: Table 2", f"{who}: Table 3"]
    names = [*settings.attacks, *settings.content]
    where = content["manifest"] or "the generated cohort, made where absent"
    lines = [f"{one}: {name}" for one in ("none", who) for name in names]
    return [f"would measure on {where}, with {content['attack_steps']} batches for all that learns:", *own, *lines]


def bundle_evaluation(bundle: Path, overrides: dict[str, object]) -> Evaluation:
    """The `evaluation` of a bundle's `configs/evaluate.json` with some entries replaced (None leaves one as it is).

    Raises:
        ValueError: the bundle has no such config, or it has no entry of that name.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser(evaluate_config(bundle, overrides))
    try:
        evaluation = parser.get_parsed_content("evaluation")
    except RuntimeError as error:
        raise unwrapped(error) from error
    assert isinstance(evaluation, Evaluation)
    return evaluation


def evaluate_config(bundle: Path, overrides: dict[str, object]) -> dict[str, Any]:
    """The entries of a bundle's `configs/evaluate.json`, some replaced.

    Raises:
        ValueError: the bundle has no such config, or it has no entry of that name.
    """
    from monai.bundle import ConfigParser

    config = bundle / "configs" / "evaluate.json"
    if not config.is_file():
        raise ValueError(f"{config} is missing; --bundle takes a bundle's folder, such as bundles/chest")
    content = ConfigParser.load_config_file(config)
    given = {name: value for name, value in overrides.items() if value is not None}
    if unknown := sorted(set(given) - set(content)):
        raise ValueError(f"{config} has no {unknown}; it has {sorted(content)}")
    found: dict[str, Any] = content | {"bundle_root": str(bundle)} | given
    return found
