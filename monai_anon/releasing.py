"""A release from end to end: plan, gate, copies, certificate; in one process or several (torchrun).

Several processes each take a share of the files, which needs no word between them: every decision is a function of key
and original. They share a key, since a random one would name copies otherwise in each; the first one counts and writes
the certificate, last of all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from monai_anon import certificate as certificates
from monai_anon import ranks
from monai_anon import statements as stating
from monai_anon.anonymizers import LatentSwapAnonymizer
from monai_anon.bundles import InferenceSettings, chosen_device, load_anonymizer
from monai_anon.certificate import Model, Pseudonyms, Tally
from monai_anon.dicom import DicomSettings
from monai_anon.drawing import Drawing
from monai_anon.gate import Gate
from monai_anon.jobs import Job, Naming, Plan, Refusal, plan_files, shown
from monai_anon.keys import chosen_key, write_key
from monai_anon.pseudonyms import FOLDERS, TOO_MANY, group, images_a_patient, patient_finder
from monai_anon.release import FileAnonymizer, Outcome
from monai_anon.site import site_gate
from monai_anon.whole_files import DRAFTS, require_writable

NO_SITE = (
    "nothing is released without the privacy gate: --site SITE takes the folder that `monai-anon calibrate SITE` makes "
    "of your training patients and of people held out; --no-gate releases unchecked copies, and the certificate says so"
)

_RECORD_START = b'{"file": '
_LONGEST_WAIT = 7 * 24 * 3600.0  # seconds that a process waits for the slowest one; torchrun ends all where one dies


@dataclass(frozen=True)
class Request:
    """What `monai-anon anonymize` is asked for; its help says what each entry is."""

    inputs: Sequence[Path]
    output: Path
    bundle: Path
    model: Path | None = None
    overlays: Sequence[Path] = ()
    site: Path | None = None
    judges: Path | None = None
    no_gate: bool = False
    seed: int | None = None
    policy: str | None = None
    prototypes: int | None = None
    epsilon: float | None = None
    keep_form: bool | None = None
    header: str = "groups"
    names: str | None = None
    key: Path | None = None
    make_key: bool = False
    patients: str | None = None
    most_images: int | None = None
    no_text: bool = False
    paths: bool = False
    site_record: Path | None = None
    go_on: bool = False
    to_gray: bool = False
    batch_size: int = 16
    device: str | None = None
    overwrite: bool = False

    @property
    def replacing(self) -> bool:
        """Whether what stands in OUTPUT may be replaced."""
        return self.overwrite or self.go_on


class Processes(NamedTuple):
    """This process among those of torchrun."""

    rank: int
    size: int

    @staticmethod
    def joined() -> Processes:
        """Meet the other processes, if there are any."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            ranks.join("cpu", _LONGEST_WAIT)
        return Processes(dist.get_rank() if ranks.distributed() else 0, ranks.world_size())

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()

    def gathered(self, found: Any) -> list[Any]:
        """What each has found, in the first one; nothing in the others."""
        if self.size == 1:
            return [found]
        everything: list[Any] = [None] * self.size
        dist.gather_object(found, everything if self.rank == 0 else None)
        return everything if self.rank == 0 else []

    def agreed(self, decide: Callable[[], Any]) -> Any:
        """What the first one decides, in all of them."""
        decided = [decide() if self.rank == 0 else None]
        if self.size > 1:
            dist.broadcast_object_list(decided, src=0)
        return decided[0]


class Release:
    """Everything that is settled before the first file is opened.

    Raises:
        ValueError: what cannot be done, and what to do.
    """

    def __init__(self, request: Request, processes: Processes) -> None:
        self.request, self.processes = request, processes
        if processes.size > 1 and (request.key is None or request.make_key):
            raise ValueError("several processes need one --key, which is there already: a run of one process makes it")
        self.key = chosen_key(request.key, request.make_key, request.output)
        self.plan = plan_files(
            request.inputs, request.output, request.replacing, Naming(self.key, request.names, request.paths)
        )
        self.folder = self.plan.folder
        self._refuse_contradictions()
        self.network, self.settings = self._loaded()
        self.gate = self._gate()
        dicom = any(job.target.suffix == ".dcm" for job in self.plan.jobs)
        self.statement = self._statement(request.header if dicom else "none")
        self.patients = _patients_from(request.patients, dicom)
        # One process looks: a file that another can read, or cannot, just then would shift its share of the files.
        self.plan, self.jobs, self.there, self.already = processes.agreed(self._grouped)

    def _grouped(self) -> tuple[Plan, list[Job], dict[str, dict[str, float]], int]:
        """The plan by patients, all its jobs, the statements of what stands there already, and how many those are."""
        request, plan = self.request, self.plan
        finder = patient_finder(request.patients, self.key)
        group(plan, finder, request.key is not None, request.header, request.most_images, progress=True)
        jobs = list(plan.jobs)
        there = stating.stated(request.output, self.statement) if request.go_on else {}
        if request.replacing:
            self._refuse_uncounted()
        return plan, jobs, there, plan.leave(set(there))

    def _refuse_uncounted(self) -> None:
        """No copy may stand beside a certificate that does not count it."""
        folder, plan = self.plan.folder, self.plan
        if folder is None:
            return
        counted = {str(job.target.relative_to(folder)) for job in [*plan.jobs, *plan.beyond]}
        left = [name for name in stating.named(folder) - counted if (folder / name).is_file()]
        if left:
            raise ValueError(
                f"{shown(folder)} holds {len(left)} copies of an earlier run that are of none of these files (or have "
                "names by another key), so no certificate would count them; give all of that run's files and its key, "
                "choose another OUTPUT, or delete this one"
            )

    def _loaded(self) -> tuple[Any, InferenceSettings]:
        request, device = self.request, self.request.device
        if device is None and self.processes.size > 1 and torch.cuda.is_available():
            device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
        channel = {"policy": request.policy, "prototypes": request.prototypes, "epsilon": request.epsilon}
        return load_anonymizer(request.bundle, request.model, chosen_device(device), channel, request.overlays)

    def _statement(self, header: str) -> dict[str, Any]:
        kept = self.request.keep_form
        found = stating.statement_of(self.network, self.settings.model_file, False, header, self.gate)
        form = found["bits"] is None if kept is None else kept
        return found | {"form": "original" if form else "model"}

    def _refuse_contradictions(self) -> None:
        request, plan = self.request, self.plan
        if request.go_on and (plan.folder is None or (plan.keyed and request.key is None)):
            raise ValueError("--continue needs a folder as OUTPUT and, for copies with keyed names, the run's --key")
        if request.go_on and not request.no_gate and request.key is None and (request.seed is None or request.epsilon):
            raise ValueError(
                "--continue through the gate needs the run's --key (or --seed, without --epsilon): with other draws "
                "what was withheld would have another chance, and copies would say more"
            )
        if request.patients is not None and request.key is None:
            raise ValueError(
                "--patients needs --key FILE, which a patient's one identity hangs on; --make-key makes it"
            )
        if request.no_gate and (request.site is not None or request.judges is not None):
            raise ValueError("--no-gate contradicts --site and --judges")
        require_writable(plan.folder or request.output.parent, "OUTPUT")
        if request.site_record is not None:
            _refuse_record(request.site_record, request)
        there = plan.folder is not None and os.path.lexists(plan.folder / certificates.JSON_FILE)
        if there and not request.replacing:
            raise ValueError(
                f"{shown(request.output)} holds a release with its certificate; choose another OUTPUT, or --overwrite"
            )

    def _gate(self) -> Gate | None:
        request = self.request
        if request.no_gate:
            return None
        if request.site is None:
            raise ValueError(NO_SITE)
        if not isinstance(self.network, LatentSwapAnonymizer):
            raise ValueError(f"the gate cannot look into {type(self.network).__name__}; it is no LatentSwapAnonymizer")
        return site_gate(self.network, self.settings.model_file, request.site, request.judges)

    def anonymizer(self) -> FileAnonymizer:
        """What makes the copies."""
        request, statement = self.request, self.statement
        dicom = DicomSettings(
            self.key,
            request.header,
            statement["bits"],
            statement["policy"] or "unknown",
            request.no_text,
            gated=bool(self.gate),
        )
        keyed = request.key is not None
        seed = self.key.seed() if request.seed is None and keyed else request.seed
        means = json.dumps([statement[name] for name in ("model", "policy", "prototypes", "epsilon")])
        drawing = Drawing(self.network, seed, self.key if keyed else None, self.gate, means)
        size, channels, _ = self.settings
        form = statement["form"] == "original"
        return FileAnonymizer(drawing, size, channels, request.batch_size, form, dicom, request.to_gray)

    @property
    def everything(self) -> int:
        """How many images were found."""
        return len(self.plan.jobs) + self.already + len(self.plan.refusals)


class Result(NamedTuple):
    """What a release came to: every file without a copy, and the counts."""

    refusals: list[Refusal]
    tally: Tally


def run(release: Release, say: Callable[[str], None]) -> Result | None:
    """Write copies, statements and the certificate; None in all processes but the first."""
    request, processes, plan = release.request, release.processes, release.plan
    anonymizer = release.anonymizer()
    processes.wait()  # none writes while another still looks at what is there
    if processes.rank == 0:
        if request.make_key and request.key is not None:
            write_key(release.key, request.key)
            say(f"made the key {shown(request.key)}: keep it, and keep it to yourself")
        _clear(release)
    processes.wait()
    tally, record = Tally(), _Record(release)

    def note(outcomes: list[Outcome]) -> None:
        tally.add(outcomes)
        record.add(outcomes)
        if release.folder is not None:
            copies = {
                str(job.target.relative_to(release.folder)): decision.shareable()["training"] if decision else {}
                for job, refusal, decision in outcomes
                if refusal is None
            }
            if copies:
                stating.append_statements(release.folder, copies, release.statement, stating.rank_file(processes.rank))

    share = plan.jobs[processes.rank :: processes.size]
    refusals = anonymizer.run(share, request.replacing, progress=processes.rank == 0, note=note)
    parts = processes.gathered((tally, refusals))
    if not parts:
        return None
    result = _whole(release, parts)
    if release.folder is not None:
        release.folder.mkdir(parents=True, exist_ok=True)
        stating.join_ranks(release.folder)
        certificates.write_certificate(release.folder, _certificate(release, result))
    return result


def _whole(release: Release, parts: list[tuple[Tally, list[Refusal]]]) -> Result:
    """What all processes have found, what was refused before they began, and what was there already."""
    plan, tally, refusals = release.plan, Tally(), list(release.plan.refusals)
    for counted, refused in parts:
        tally.join(counted)
        refusals += refused
    for refusal in plan.refusals:
        tally.add_refusal(refusal.withheld)
    if release.folder is not None and release.already:
        made = {job.source for job in plan.jobs}
        for job in release.jobs:
            if job.source not in made:
                tally.add_copy(release.there[str(job.target.relative_to(release.folder))])
    return Result(sorted(refusals, key=lambda refusal: plan.numbers[refusal.path]), tally)


def _certificate(release: Release, result: Result) -> dict[str, Any]:
    request = release.request
    undecided = {refusal.path for refusal in result.refusals if not refusal.withheld or TOO_MANY in refusal.withheld}
    decided = [job for job in release.jobs if job.source not in undecided]
    identity = "patient" if any(job.identity for job in release.jobs) else "image"
    who = Pseudonyms(identity, release.patients, images_a_patient(decided), request.most_images)
    model = Model.of(request.bundle, release.settings.model_file)
    return certificates.certificate(
        model, release.statement, getattr(release.network, "channel", None), release.gate, who, result.tally
    )


def _patients_from(source: str | None, dicom: bool) -> str | None:
    if source is not None:
        return FOLDERS if source == FOLDERS else "table"
    return "header" if dicom else None


def _refuse_record(record: Path, request: Request) -> None:
    """Of what stands at --site-record only an earlier record is replaced, and nothing is taken away before."""
    if _inside(record, request.output):
        raise ValueError(f"{shown(record)} lies in OUTPUT, which is handed over; keep it elsewhere")
    kept = [*request.inputs, *([] if request.key is None else [request.key])]
    if any(_inside(record, path) for path in kept) or (os.path.lexists(record) and not _is_record(record)):
        raise ValueError(
            f"--site-record {shown(record)} is a folder, the key, no record of before, or in INPUT; choose a new file"
        )
    if os.path.lexists(record) and not request.replacing:
        raise ValueError(f"{shown(record)} exists already; --overwrite replaces it")
    require_writable(record.parent, "--site-record")


def _is_record(path: Path) -> bool:
    """Whether a file is a record, or empty."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(len(_RECORD_START))
    return start in (b"", _RECORD_START)


def _inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _clear(release: Release) -> None:
    """Take away what would be untrue while copies are replaced: the certificate, and of files that are made again (or
    are refused by whose they are) statements and copies of an earlier run, and drafts that a killed run has left.
    """
    folder, stale = release.folder, [*release.plan.jobs, *release.plan.beyond]
    if not release.request.replacing:
        return
    if folder is not None and folder.is_dir():
        for name in (certificates.JSON_FILE, certificates.PAGE_FILE):
            (folder / name).unlink(missing_ok=True)
        stating.forget(folder, {str(job.target.relative_to(folder)) for job in stale})
        for draft in folder.rglob(DRAFTS):
            draft.unlink()
    for job in stale:
        job.target.unlink(missing_ok=True)


class _Record:
    """The site's own record: a line of JSON a file, for its owner's eyes, with all that the gate has found."""

    def __init__(self, release: Release) -> None:
        self.plan, self.path = release.plan, release.request.site_record
        if self.path is not None:
            if release.processes.rank:
                self.path = self.path.with_name(f"{self.path.name}.rank{release.processes.rank}")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = os.O_TRUNC if not release.request.go_on else os.O_APPEND
            opened = os.open(self.path, os.O_WRONLY | os.O_CREAT | fresh, 0o600)
            os.fchmod(opened, 0o600)
            os.close(opened)

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Append what became of some files."""
        if self.path is None:
            return
        with self.path.open("a", encoding="ascii") as file:
            for job, refusal, decision in outcomes:
                row: dict[str, Any] = {"file": self.plan.told(job.source), "released": refusal is None}
                if refusal is not None:
                    row["reason"] = refusal.reason
                if decision is not None:
                    row |= {"tries": decision.tries, "likeness_to_training": dict(decision.training)}
                    row |= {"likeness_to_original": dict(decision.original), "change_of_finding": dict(decision.change)}
                file.write(json.dumps(row) + "\n")
