"""Every bundle runs as documented: both trainings, evaluation, a folder anonymised, and what each of them refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundle_commands import BUNDLES, CHEST, FACE, IRIS, TINY, Bundle, command
from conftest import ROOT
from monai.bundle import ckpt_export
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_anon.evaluation.aggregation import about_persons
from monai_anon.evaluation.tables import JUDGES
from monai_anon.model_files import read_record
from monai_anon.preconditions import FolderError, MissingFileError, unwrapped

pytestmark = pytest.mark.filterwarnings("ignore")


class Trained:
    """What a training has left; `log` is what it said."""

    def __init__(self, bundle: Bundle, folder: Path, log: str):
        self.output, self.log = folder / "output", log
        self.manifest = folder / "data" / f"{bundle.name}_32" / "manifest.json"

    @property
    def overrides(self) -> dict[str, Any]:
        return TINY | {"manifest": str(self.manifest), "output_dir": str(self.output)}


@pytest.fixture(scope="module", params=BUNDLES, ids=lambda bundle: bundle.name)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return request.param


def of(*bundles: Bundle) -> pytest.MarkDecorator:
    """For what does not differ from bundle to bundle, or is one bundle's own."""
    return pytest.mark.parametrize("bundle", bundles, ids=lambda bundle: bundle.name, indirect=True, scope="module")


@pytest.fixture(scope="module")
def stage_1(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Stage 1 on the generated cohort, made small; chest's by the documented command, from the repository's root."""
    folder = tmp_path_factory.mktemp(bundle.name)
    where = {"output_dir": str(folder / "output"), "dataset_dir": str(folder / "data")}
    options = TINY | bundle.sizes | where | {"recogniser_epochs": 1, "log_every": 1}
    if bundle != CHEST:
        bundle.execute("train.json", run_id="training", **options)
        return Trained(bundle, folder, "")
    ended = command("run", "training", "--config_file", "bundles/chest/configs/train.json", cwd=ROOT, **options)
    assert ended.returncode == 0, ended.stderr
    return Trained(bundle, folder, ended.stderr + ended.stdout)


@pytest.fixture(scope="module")
def trained(bundle: Bundle, stage_1: Trained) -> Trained:
    """Both stages."""
    bundle.execute("train_identity_vae.json", run_id="training", **stage_1.overrides)
    return stage_1


@pytest.fixture
def pictures(bundle: Bundle, tmp_path: Path) -> Path:
    """A folder of images that look different in every corner and channel, some with one name, in folders."""
    folder, mode = tmp_path / "pictures", "RGB" if bundle == FACE else "L"
    for number, name in enumerate(("a/x.png", "b/x.png", "b/n.a.m.e.PNG")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        steps = np.arange(number, 32 * 24 + number, dtype=np.uint16).reshape(32, 24)
        values = np.stack([steps, 3 * steps, 7 * steps], -1) if mode == "RGB" else steps
        Image.fromarray(values.astype(np.uint8), mode).resize((32, 32), Image.Resampling.NEAREST).save(folder / name)
    return folder


# ---- Trainings ----


def test_stage_1_ends_with_weights_a_checkpoint_and_a_picture(stage_1: Trained, bundle: Bundle) -> None:
    assert (stage_1.output / "disentangler.pt").is_file() and (stage_1.output / "checkpoint.pt").is_file()
    assert [f.name for f in (stage_1.output / "pictures").iterdir()] == ["grid_0001.png"]
    with Image.open(stage_1.output / "pictures" / "grid_0001.png") as grid:
        assert grid.mode == ("RGB" if bundle == FACE else "L")


@of(CHEST)
def test_the_console_shows_our_lines_and_the_bars_only(stage_1: Trained) -> None:
    """First that the cohort is generated."""
    log = stage_1.log
    assert "GENERATED cohort" in log.splitlines()[0]
    assert "Engine run" not in log and "input summary" not in log and "Setting logging" not in log
    assert "epoch 1 validation" in log and "stage 1" in log


def test_every_term_has_its_curve(stage_1: Trained, bundle: Bundle) -> None:
    events = EventAccumulator(str(stage_1.output / "tensorboard"))
    events.Reload()
    curves = set(events.Tags()["scalars"])
    used = {term for term, weight in bundle.config("train.json")["weights"].items() if weight > 0}
    assert used and used <= curves
    assert {f"latent/{name}_std" for name in ("identity", "medical", "residual")} <= curves
    assert {"latent/same_hit", "latent/other_hit", "validation/score", "validation/ssim"} <= curves
    assert len(events.Scalars("ssim")) == 48 // 8
    assert events.Tags()["images"]


def test_stage_2_writes_one_file_of_tensors_that_holds_both_stages(trained: Trained, bundle: Bundle) -> None:
    weights = torch.load(trained.output / "model.pt", weights_only=True)
    assert {name.split(".")[0] for name in weights} == {"disentangler", "identity_vae", "channel"}
    events = EventAccumulator(str(trained.output / "tensorboard_identity_vae"))
    events.Reload()
    used = {term for term, weight in bundle.config("train_identity_vae.json")["weights"].items() if weight > 0}
    assert used <= set(events.Tags()["scalars"])


@of(IRIS)
def test_a_row_for_each_training_patient_is_in_the_first_stages_file_only(trained: Trained) -> None:
    """The entropy of stage 2 is taken of it."""
    stage_1, both = (torch.load(trained.output / name, weights_only=True) for name in ("disentangler.pt", "model.pt"))
    assert stage_1["identity_classifier.3.weight"].shape[0] == 12
    assert not [name for name, tensor in both.items() if "identity_classifier" in name or 12 in tensor.shape]
    events = EventAccumulator(str(trained.output / "tensorboard_identity_vae"))
    events.Reload()
    assert all(-np.log(12) - 1e-4 < event.value < 0 for event in events.Scalars("entropy"))


@of(IRIS, FACE)
def test_another_protocol_is_another_cohort(bundle: Bundle, tmp_path: Path) -> None:
    """Where people are apart, those of the training part are the classes."""
    overlay, name = ("disjoint.json", "iris_disjoint_32") if bundle == IRIS else ("scenes.json", "face_scenes_32")
    where = {"image_size": 32, "output_dir": str(tmp_path), "dataset_dir": str(tmp_path / "data")}
    sizes = {"manifest_path#images": [20, 8, 8], "manifest_path#patients": [5, 3, 3]}
    started = bundle.workflow("train.json", overlay, **where, **sizes)
    assert started.parser.get_parsed_content("manifest_path") == str(tmp_path / "data" / name / "manifest.json")
    if bundle == IRIS:
        network = started.parser.get_parsed_content("network_def")
        assert network.identity_classifier(torch.zeros(1, 96)).shape == (1, 5)


@of(CHEST)
def test_the_records_of_both_stages_stand_beside_their_weights(trained: Trained) -> None:
    stage_1, both = (read_record(trained.output / name) for name in ("disentangler.pt", "model.pt"))
    assert (stage_1["images_seen"], stage_1["iterations"], stage_1["epoch_kept"], stage_1["seed"]) == (48, 6, 1, 0)
    assert {name: both[name] for name in stage_1} == stage_1
    assert both["identity_vae"]["iterations"] == 50
    assert both["bundle"] == "Chest radiograph anonymisation by disentanglement"


@of(CHEST)
def test_the_command_of_stage_2_without_stage_1_ends_with_the_command_to_run(bundle: Bundle, tmp_path: Path) -> None:
    """From the bundle's folder, by run id `run`."""
    ended = command("run", "--config_file", "configs/train_identity_vae.json", cwd=bundle.folder, output_dir=tmp_path)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-2:]
    assert last[0] == (
        f"MissingFileError: {tmp_path}/disentangler.pt is missing: stage 2 needs the networks of stage 1. Run first:"
    )
    assert last[1].strip() == (
        f"python -m monai.bundle run training --config_file ./configs/train.json --output_dir {tmp_path}"
    )
    assert "Traceback" not in ended.stderr


def test_stage_2_without_stage_1_makes_nothing(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cohort, either; here from the repository's root."""
    monkeypatch.chdir(ROOT)
    where = {"output_dir": str(tmp_path / "output"), "dataset_dir": str(tmp_path / "data")}
    with pytest.raises(RuntimeError) as refused:
        bundle.execute("train_identity_vae.json", run_id="training", **where)
    error = unwrapped(refused.value)
    assert isinstance(error, MissingFileError)
    assert f"--config_file bundles/{bundle.name}/configs/train.json --output_dir {tmp_path}/output" in str(error)
    assert not list(tmp_path.iterdir())


def test_the_first_weights_depend_on_the_seed_alone(stage_1: Trained, bundle: Bundle) -> None:
    def first_weights(seed: int, disturbance: int) -> torch.Tensor:
        torch.manual_seed(disturbance)
        started = bundle.workflow("train.json", **stage_1.overrides, seed=seed)
        started.initialize()
        torch.rand(disturbance)
        return started.parser.get_parsed_content("network_def").encoder.head.weight.detach()

    assert torch.equal(first_weights(0, 3), first_weights(0, 5))
    assert not torch.equal(first_weights(0, 3), first_weights(1, 3))


@pytest.mark.slow
@of(IRIS, FACE)
def test_two_ranks_train_one_network_on_different_images_and_one_of_them_writes(bundle: Bundle, tmp_path: Path) -> None:
    """Both start without a cohort, and iris's network has a class for each of its people: rank 0 makes it first."""
    end = [
        "$torch.save({'weights': @network_def.state_dict(), 'images': @train#loader.sampler.indices(0)['ori']}, "
        f"r'{tmp_path}/rank' + str(dist.get_rank()))",
        "$dist.destroy_process_group()",
    ]
    files = [str(bundle.configs / "train.json"), str(bundle.configs / "multi_gpu_train.json")]
    where = {"output_dir": tmp_path / "output", "dataset_dir": tmp_path / "data"}
    overrides = TINY | bundle.sizes | where | {"finalize": end}
    launch = ("--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run", "training", "--config_file")
    ended = command(*launch, str(files), cwd=tmp_path, module="torch.distributed.run", **overrides)
    assert ended.returncode == 0, ended.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}", weights_only=False) for rank in (0, 1))
    assert bundle != IRIS or "identity_classifier.3.weight" in first["weights"]
    assert all(torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items())
    assert not set(first["images"]) & set(second["images"])
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1
    assert sorted(f.name for f in tmp_path.iterdir()) == ["data", "output", "rank0", "rank1"]
    assert ended.stderr.count("GENERATED cohort") == 1


# ---- What MONAI asks of what was trained ----


def test_no_required_property_is_missing(trained: Trained, bundle: Bundle, pictures: Path, tmp_path: Path) -> None:
    for name in ("train.json", "train_identity_vae.json"):
        stage_1 = {"disentangler": str(trained.output / "disentangler.pt")} if "vae" in name else {}
        training = bundle.workflow(name, **trained.overrides | {"output_dir": str(tmp_path)}, **stage_1)
        training.initialize()
        assert training.check_properties() == []
    inference = bundle.workflow("inference.json", kind="infer", dataset_dir=str(pictures), output_dir=str(tmp_path))
    inference.initialize()
    assert inference.check_properties() == []


@pytest.mark.parametrize("policy", ["latents", "code"])
def test_the_exported_network_is_the_networks_equal(
    policy: str, bundle: Bundle, trained: Trained, tmp_path: Path
) -> None:
    """The tiny cohort has too few people for prototypes: `code` is tried with a shipped model."""
    shipped = bundle.folder / "models" / "model.pt"
    if policy == "code" and not shipped.is_file():
        pytest.skip("no model is shipped")
    exported = tmp_path / "model.ts"
    weights, size = (trained.output / "model.pt", TINY["image_size"]) if policy == "latents" else (shipped, 64)
    files = {"meta_file": str(bundle.configs / "metadata.json"), "config_file": str(bundle.configs / "inference.json")}
    changed = {"image_size": size, "policy": policy}
    ckpt_export("network_def", str(exported), str(weights), **files, **changed)
    eager = bundle.parser("inference.json", **changed).get_parsed_content("network_def")
    eager.load_state_dict(torch.load(weights, weights_only=True))
    image, made = torch.rand(2, eager.disentangler.encoder.channels, size, size) * 2 - 1, []
    for network in (eager.eval(), torch.jit.load(str(exported)).eval()):
        torch.manual_seed(7)
        with torch.no_grad():
            made.append(network(image))
    assert torch.allclose(made[0], made[1], atol=1e-6)


# ---- Evaluation ----


def test_judging_then_evaluating_writes_rows_and_report(trained: Trained, bundle: Bundle, tmp_path: Path) -> None:
    tiny = {"image_size": 32, "verifier_steps": 2, "medical_steps": 2, "bootstrap": 5, "plain_vae_epochs": 1}
    where = {"output_dir": str(tmp_path / "tables"), "judges_dir": str(tmp_path / "judges")}
    options = tiny | where | {"manifest": str(trained.manifest), "model_file": str(trained.output / "model.pt")}
    bundle.execute("evaluate.json", "quick_evaluate.json", run_id="judging", policy="latents", **options)
    judges = {f: f.stat().st_mtime_ns for f in (tmp_path / "judges").glob("*.safetensors")}
    assert judges and not (tmp_path / "tables").exists()
    bundle.execute("evaluate.json", "quick_evaluate.json", run_id="evaluating", policy="latents", **options)
    assert judges == {f: f.stat().st_mtime_ns for f in (tmp_path / "judges").glob("*.safetensors")}
    rows = [json.loads(line) for line in (tmp_path / "tables" / "rows.jsonl").read_text().splitlines()]
    methods = {row["method"] for row in rows}
    assert {"reconstruction", "identity replacement", "medical replacement", "VAE (plain)"} <= methods
    assert "Table 3" in (tmp_path / "tables" / "report.md").read_text()
    assert not {row["metric"] for row in rows} & {"adaptive_auc"} and not (tmp_path / "tables" / "attacks.csv").exists()


@pytest.mark.parametrize("least", [0.0, 1.1])
@of(CHEST)
def test_every_attack_is_made_but_speaks_only_where_the_verifier_knows_enough(
    trained: Trained, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: float
) -> None:
    monkeypatch.setattr("monai_anon.evaluation.judges.LEAST_VERIFIER_AUC", least)
    tiny = {"image_size": 32, "verifier_steps": 2, "medical_steps": 2, "bootstrap": 5, "plain_vae_epochs": 1}
    where = {"output_dir": str(tmp_path / "run"), "judges_dir": str(tmp_path / "judges")}
    options = tiny | where | {"manifest": str(trained.manifest), "model_file": str(trained.output / "model.pt")}
    bundle.execute("evaluate.json", run_id="evaluating", policy="latents", attack_steps=2, **options)
    rows = [json.loads(line) for line in (tmp_path / "run" / "rows.jsonl").read_text().splitlines()]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "## Attacks" in report and (tmp_path / "run" / "attacks.csv").exists()
    private = [row for row in rows if row["metric"].startswith(PRIVATE)]
    methods = {"none", "VAE with privacy loss"}
    if least > 1:
        assert {row["value"] for row in private} == {None} and {row["method"] for row in private} == methods
        spoken = {row["metric"] for row in rows if row["value"] is not None and row["method"] != JUDGES}
        assert spoken and not {metric for metric in spoken if about_persons(metric)}
        assert json.loads((tmp_path / "run" / "curves.json").read_text()) == []
        assert all("no verdict" in row["note"] for row in private) and "no verdict" in report
        return
    for method in methods:
        found = {row["metric"]: row["value"] for row in private if row["method"] == method}
        assert {prefix for prefix in PRIVATE if any(name.startswith(prefix) for name in found)} == set(PRIVATE)
        assert all(0 <= value <= 1 for value in found.values())
    assert {row["metric"] for row in rows if row["metric"].startswith("probe_")} == {
        f"probe_{latent}_{what}_auc"
        for latent in ("identity", "medical", "residual")
        for what in ("patient", "finding")
    }
    assert "P1 static" in report and "P8 latent probes" in report
    figures = [(row["method"], row["metric"]) for row in rows]
    assert len(figures) == len(set(figures))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["settings"]["attack_steps"] == 2 and record["cohort"]["parts"]["training"]["images"] > 0


PRIVATE = ("privacy_", "static_", "adaptive_", "linkage_", "inversion_", "membership_", "repeated_")


# ---- Inference ----


def anonymise(bundle: Bundle, pictures: Path, output: Path, **overrides: Any) -> None:
    where = {"dataset_dir": str(pictures), "output_dir": str(output)}
    bundle.execute("inference.json", kind="infer", policy="latents", **where, **overrides)


@pytest.fixture
def same(tmp_path: Path) -> dict[str, Any]:
    """An identity in place of the network: files, orientation and the range are all that is left."""
    (tmp_path / "any.pt").touch()
    network = {"network_def": {"_target_": "torch.nn.Identity"}, "load": "$lambda: None", "image_size": 32}
    return network | {"model_file": str(tmp_path / "any.pt")}


def test_what_the_network_returns_is_written_upright_pixel_by_pixel(
    bundle: Bundle, pictures: Path, tmp_path: Path, same: dict[str, Any]
) -> None:
    """And in its colours."""
    anonymise(bundle, pictures, tmp_path / "out", **same)
    for name in ("a/x.png", "b/x.png", "b/n.a.m.e.PNG"):
        with Image.open(pictures / name) as before, Image.open(tmp_path / "out" / result(name)) as after:
            assert after.mode == before.mode and np.array_equal(np.asarray(after), np.asarray(before)), name


def test_gray_files_are_colour_files_too_but_not_the_other_way_round(
    bundle: Bundle, tmp_path: Path, same: dict[str, Any]
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    values = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(values.astype(np.uint8)).convert("L" if bundle == FACE else "RGB").save(files / "a.png")
    wrong = r"not 8-bit gray PNG files .*a\.png: RGB"
    if bundle == FACE:
        anonymise(bundle, files, tmp_path / "out", **same)
        copy = np.asarray(Image.open(tmp_path / "out" / "a_anonymised.png"))
        assert copy.shape == (32, 32, 3) and (copy == values.astype(np.uint8)[..., None]).all()
        Image.fromarray(values).save(files / "deep.png")
        wrong = r"not 8-bit gray or 8-bit colour PNG files .*deep\.png: I;16"
    with pytest.raises(RuntimeError) as refused:
        anonymise(bundle, files, tmp_path / "other", **same)
    assert isinstance(unwrapped(refused.value), FolderError)
    assert re.search(wrong, str(unwrapped(refused.value)), re.DOTALL)


def result(name: str) -> Path:
    path = Path(name)
    return path.with_name(f"{path.stem}_anonymised.png")


def test_a_folder_becomes_anonymised_files_of_the_same_names(
    bundle: Bundle, trained: Trained, pictures: Path, tmp_path: Path
) -> None:
    model = {"image_size": 32, "model_file": str(trained.output / "model.pt"), "seed": 0}
    anonymise(bundle, pictures, tmp_path / "one", **model)
    made = sorted(f.relative_to(tmp_path / "one") for f in (tmp_path / "one").rglob("*") if f.is_file())
    assert made == sorted(result(str(f.relative_to(pictures))) for f in pictures.rglob("*") if f.is_file())
    with pytest.raises(RuntimeError) as refused:
        anonymise(bundle, pictures, tmp_path / "one", **model)
    assert isinstance(unwrapped(refused.value), FolderError) and "--overwrite True" in str(unwrapped(refused.value))
    anonymise(bundle, pictures, tmp_path / "two", **model)
    anonymise(bundle, pictures, tmp_path / "other", **model | {"seed": None})
    pixels = [[np.asarray(Image.open(tmp_path / run / name)) for name in made] for run in ("one", "two", "other")]
    assert all(np.array_equal(a, b) for a, b in zip(pixels[0], pixels[1]))
    assert not any(np.array_equal(a, b) for a, b in zip(pixels[0], pixels[2]))


@of(CHEST)
def test_copies_keep_their_names_where_nothing_of_the_image_but_a_code_reaches_them(
    bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    where = {"dataset_dir": str(pictures), "output_dir": str(tmp_path / "out"), "bundle_root": str(bundle.folder)}
    bundle.execute("inference.json", kind="infer", **where)
    made = {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert made == {str(result(name)) for name in ("a/x.png", "b/x.png", "b/n.a.m.e.PNG")}


@pytest.mark.parametrize("name", ["evaluate.json", "inference.json"])
def test_without_a_model_the_commands_that_make_one_are_named(
    bundle: Bundle, name: str, tmp_path: Path, pictures: Path
) -> None:
    missing = {"model_file": str(tmp_path / "none.pt"), "dataset_dir": str(pictures)}
    started = bundle.workflow(name, **missing, output_dir=str(tmp_path / "out"))
    started.initialize()
    with pytest.raises(RuntimeError) as refused:
        started.run()
    error = unwrapped(refused.value)
    assert isinstance(error, MissingFileError) and str(error).startswith(f"{tmp_path}/none.pt is missing")
    assert "configs/train.json" in str(error) and "configs/train_identity_vae.json" in str(error)
