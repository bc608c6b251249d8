"""The chest bundle as MONAI sees it: every config runs, resolves, exports and refuses as documented."""

from __future__ import annotations

import ast
import json
import logging.config
import os
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc import locate
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_anon.evaluation.aggregation import about_persons
from monai_anon.evaluation.protocol import Settings
from monai_anon.evaluation.tables import JUDGES
from monai_anon.handlers import read_record
from monai_anon.identity_vae_step import VAE_TERMS
from monai_anon.overrides import OverrideError
from monai_anon.preconditions import FolderError, MissingFileError, unwrapped
from monai_anon.recipe import TERMS

pytestmark = pytest.mark.filterwarnings("ignore")
BUNDLE = Path(__file__).resolve().parent.parent / "bundles" / "chest"
CONFIGS = BUNDLE / "configs"
STAND_ALONE = ("train.json", "train_identity_vae.json", "evaluate.json", "inference.json")
TINY = {"image_size": 32, "batch_size": 8, "max_epochs": 1}  # every run takes seconds
SIZES = {"images": [48, 24, 24], "patients": [12, 6, 6]}
# A config, its overlays and the other name of `run`.
COMBINATIONS = [
    ("training", "train.json"),
    ("training", "train.json", "quick.json"),
    ("training", "train.json", "paper.json"),
    ("training", "train.json", "realism.json"),
    ("training", "train.json", "size_128.json"),
    ("training", "train.json", "multi_gpu_train.json"),
    ("training", "train.json", "paper.json", "multi_gpu_train.json"),
    ("training", "train_identity_vae.json"),
    ("training", "train_identity_vae.json", "paper_identity_vae.json"),
    ("training", "train_identity_vae.json", "size_128.json"),
    ("training", "train_identity_vae.json", "multi_gpu_train_identity_vae.json"),
    ("training", "train_identity_vae.json", "paper_identity_vae.json", "multi_gpu_train_identity_vae.json"),
    ("evaluating", "evaluate.json"),
    ("evaluating", "evaluate.json", "quick_evaluate.json"),
    ("evaluating", "evaluate.json", "paper_model.json"),
    ("evaluating", "evaluate.json", "size_128.json"),
    ("inference", "inference.json"),
    ("inference", "inference.json", "paper_model.json"),
    ("inference", "inference.json", "size_128.json"),
]


def config(name: str) -> dict[str, Any]:
    return json.loads((CONFIGS / name).read_text())


def workflow(*names: str, run_id: str = "run", kind: str = "train", **overrides: Any) -> ConfigWorkflow:
    """The configs as MONAI runs them, on the CPU; the tests' own logging stays."""
    files = [str(CONFIGS / name) for name in names]
    return ConfigWorkflow(files, logging_file=False, run_id=run_id, workflow_type=kind, device="cpu", **overrides)


def execute(*names: str, **options: Any) -> ConfigWorkflow:
    started = workflow(*names, **options)
    started.initialize()
    started.run()
    started.finalize()
    return started


def command(*arguments: str, cwd: Path, module: str = "monai.bundle", **overrides: Any) -> subprocess.CompletedProcess:
    """`python -m monai.bundle run ...` as a user types it; the warning about trusted configs is MONAI's own."""
    given = [part for key, value in overrides.items() for part in (f"--{key.replace('__', '#')}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(BUNDLE.parent.parent)
    line = [sys.executable, "-m", module, *arguments, *given]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=400, check=False)


class Trained:
    """What a training has left."""

    def __init__(self, folder: Path, process: subprocess.CompletedProcess):
        self.output, self.process = folder / "output", process
        self.manifest = folder / "data" / "chest_32" / "manifest.json"

    @property
    def overrides(self) -> dict[str, Any]:
        return TINY | {"manifest": str(self.manifest), "output_dir": str(self.output)}


@pytest.fixture(scope="module")
def stage_1(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Stage 1 by the documented command from the repository's root, on the generated cohort, made small."""
    folder = tmp_path_factory.mktemp("chest")
    sizes = {f"manifest_path__{name}": value for name, value in SIZES.items()}
    where = {"output_dir": folder / "output", "dataset_dir": folder / "data"}
    tiny = TINY | {"recogniser_epochs": 1, "log_every": 1}
    arguments = ("run", "training", "--config_file", "bundles/chest/configs/train.json")
    return Trained(folder, command(*arguments, cwd=BUNDLE.parent.parent, **tiny, **sizes, **where))


@pytest.fixture(scope="module")
def trained(stage_1: Trained) -> Trained:
    """Both stages."""
    execute("train_identity_vae.json", run_id="training", **stage_1.overrides)
    return stage_1


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of images that look different in every corner, some with one name, in folders."""
    folder = tmp_path / "pictures"
    for number, name in enumerate(("a/x.png", "b/x.png", "b/n.a.m.e.PNG")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.arange(number, 32 * 24 + number, dtype=np.uint16).reshape(32, 24).astype(np.uint8)).resize(
            (32, 32), Image.Resampling.NEAREST
        ).save(folder / name)
    return folder


# ---- Trainings ----


def test_training_from_the_root_says_that_the_cohort_is_generated_and_ends(stage_1: Trained) -> None:
    assert stage_1.process.returncode == 0, stage_1.process.stderr
    assert "GENERATED cohort" in stage_1.process.stderr.splitlines()[0]
    assert (stage_1.output / "disentangler.pt").is_file() and (stage_1.output / "checkpoint.pt").is_file()
    assert [f.name for f in (stage_1.output / "pictures").iterdir()] == ["grid_0001.png"]


def test_the_console_shows_our_lines_and_the_bars_only(stage_1: Trained) -> None:
    text = stage_1.process.stdout + stage_1.process.stderr
    assert "Engine run" not in text and "input summary" not in text and "Setting logging" not in text
    assert "epoch 1 validation" in text and "stage 1" in text


def test_every_term_has_its_curve(stage_1: Trained) -> None:
    events = EventAccumulator(str(stage_1.output / "tensorboard"))
    events.Reload()
    curves = set(events.Tags()["scalars"])
    used = {term for term, weight in config("train.json")["weights"].items() if weight > 0}
    assert used and used <= curves
    assert {f"latent/{name}_std" for name in ("identity", "medical", "residual")} <= curves
    assert {"latent/same_hit", "latent/other_hit", "validation/score", "validation/ssim"} <= curves
    assert len(events.Scalars("ssim")) == 48 // 8
    assert events.Tags()["images"]


def test_stage_2_writes_one_file_of_tensors_that_holds_both_stages(trained: Trained) -> None:
    weights = torch.load(trained.output / "model.pt", weights_only=True)
    assert {name.split(".")[0] for name in weights} == {"disentangler", "identity_vae", "channel"}
    events = EventAccumulator(str(trained.output / "tensorboard_identity_vae"))
    events.Reload()
    used = {term for term, weight in config("train_identity_vae.json")["weights"].items() if weight > 0}
    assert used <= set(events.Tags()["scalars"])


def test_the_records_of_both_stages_stand_beside_their_weights(trained: Trained) -> None:
    stage_1, both = (read_record(trained.output / name) for name in ("disentangler.pt", "model.pt"))
    assert (stage_1["images_seen"], stage_1["iterations"], stage_1["epoch_kept"], stage_1["seed"]) == (48, 6, 1, 0)
    assert {name: both[name] for name in stage_1} == stage_1
    assert both["identity_vae"]["iterations"] == 50


def test_stage_2_without_stage_1_ends_with_the_command_to_run(tmp_path: Path) -> None:
    """From the bundle's folder, by run id `run`."""
    ended = command("run", "--config_file", "configs/train_identity_vae.json", cwd=BUNDLE, output_dir=tmp_path)
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-2:]
    assert last[0] == (
        f"MissingFileError: {tmp_path}/disentangler.pt is missing: stage 2 needs the networks of stage 1. Run first:"
    )
    assert last[1].strip() == (
        f"python -m monai.bundle run training --config_file ./configs/train.json --output_dir {tmp_path}"
    )
    assert "Traceback" not in ended.stderr


def test_the_first_weights_depend_on_the_seed_alone(stage_1: Trained) -> None:
    def first_weights(seed: int, disturbance: int) -> torch.Tensor:
        torch.manual_seed(disturbance)
        started = workflow("train.json", **stage_1.overrides, seed=seed)
        started.initialize()
        torch.rand(disturbance)
        return started.parser.get_parsed_content("network_def").encoder.head.weight.detach()

    assert torch.equal(first_weights(0, 3), first_weights(0, 5))
    assert not torch.equal(first_weights(0, 3), first_weights(1, 3))


@pytest.mark.slow
def test_two_ranks_train_one_network_on_different_images_and_one_of_them_writes(tmp_path: Path) -> None:
    """Both start without a cohort: rank 0 makes it."""
    end = [
        "$torch.save({'weights': @network_def.state_dict(), 'images': @train#loader.sampler.indices(0)['ori']}, "
        f"r'{tmp_path}/rank' + str(dist.get_rank()))",
        "$dist.destroy_process_group()",
    ]
    files = [str(CONFIGS / "train.json"), str(CONFIGS / "multi_gpu_train.json")]
    sizes = {f"manifest_path__{name}": value for name, value in SIZES.items()}
    overrides = TINY | sizes | {"output_dir": tmp_path / "output", "dataset_dir": tmp_path / "data", "finalize": end}
    launch = ("--standalone", "--nproc_per_node=2", "-m", "monai.bundle", "run", "training", "--config_file")
    ended = command(*launch, str(files), cwd=tmp_path, module="torch.distributed.run", **overrides)
    assert ended.returncode == 0, ended.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}", weights_only=False) for rank in (0, 1))
    assert all(torch.equal(tensor, second["weights"][name]) for name, tensor in first["weights"].items())
    assert not set(first["images"]) & set(second["images"])
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1
    assert sorted(f.name for f in tmp_path.iterdir()) == ["data", "output", "rank0", "rank1"]
    assert ended.stderr.count("GENERATED cohort") == 1


# ---- What MONAI and the model zoo ask of a bundle ----


@pytest.mark.parametrize("files", COMBINATIONS, ids="+".join)
def test_both_run_ids_do_the_same_with_every_overlay(files: tuple[str, ...]) -> None:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / name) for name in files[1:]])
    parser.parse()
    assert parser[files[0]] == parser["run"] and parser["run"]


@pytest.mark.parametrize("files", [c for c in COMBINATIONS if len(c) > 2], ids="+".join)
def test_overlays_pass_the_check_of_overrides(files: tuple[str, ...]) -> None:
    started = workflow(*files[1:])
    checks = [i for i, step in enumerate(started.parser["initialize"]) if "refuse_misspelt" in str(step)]
    assert len(checks) == 1  # an overlay's own steps come behind it
    started.init_id = f"initialize::{checks[0]}"  # alone, while the others stay for what they read
    started.initialize()


def test_no_required_property_is_missing(trained: Trained, pictures: Path, tmp_path: Path) -> None:
    for name in ("train.json", "train_identity_vae.json"):
        training = workflow(name, **trained.overrides | {"output_dir": str(tmp_path)}, **disentangler(name, trained))
        training.initialize()
        assert training.check_properties() == []
    inference = workflow("inference.json", kind="infer", dataset_dir=str(pictures), output_dir=str(tmp_path))
    inference.initialize()
    assert inference.check_properties() == []


def disentangler(name: str, trained: Trained) -> dict[str, str]:
    return {"disentangler": str(trained.output / "disentangler.pt")} if "vae" in name else {}


@pytest.mark.parametrize("where", [BUNDLE, BUNDLE.parent.parent], ids=["bundle", "root"])
def test_the_bundle_finds_itself(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(where)
    for name in STAND_ALONE:
        parser = ConfigParser(config(name))
        assert Path(parser.get_parsed_content("bundle_root")).resolve() == BUNDLE
        assert Path(parser.get_parsed_content("output_dir")).resolve().is_relative_to(BUNDLE / "output")


def test_the_network_maps_the_declared_input_to_the_declared_output() -> None:
    verify_net_in_out(
        "network_def", str(CONFIGS / "metadata.json"), str(CONFIGS / "inference.json"), device="cpu", bundle_root="."
    )


@pytest.mark.parametrize("policy", ["latents", "code"])
def test_the_exported_network_is_the_networks_equal(policy: str, trained: Trained, tmp_path: Path) -> None:
    """The tiny cohort has too few people for prototypes: `code` is tried with the shipped model."""
    exported = tmp_path / "model.ts"
    weights, size = (trained.output, TINY["image_size"]) if policy == "latents" else (BUNDLE / "models", 64)
    options = {"meta_file": str(CONFIGS / "metadata.json"), "config_file": str(CONFIGS / "inference.json")}
    changed = {"image_size": size, "policy": policy}
    ckpt_export("network_def", str(exported), str(weights / "model.pt"), **options, **changed)
    eager = ConfigParser(config("inference.json") | changed).get_parsed_content("network_def")
    eager.load_state_dict(torch.load(weights / "model.pt", weights_only=True))
    image, made = torch.rand(2, 1, size, size) * 2 - 1, []
    for network in (eager.eval(), torch.jit.load(str(exported)).eval()):
        torch.manual_seed(7)
        with torch.no_grad():
            made.append(network(image))
    assert torch.allclose(made[0], made[1], atol=1e-6)


def test_metadata_fits_the_schema_and_the_version_is_in_the_changelog(tmp_path: Path) -> None:
    schema = shutil.copy(Path(__file__).parent / "schema" / "metadata.schema.json", tmp_path / "schema.json")
    verify_metadata(str(CONFIGS / "metadata.json"), str(schema))
    metadata = config("metadata.json")
    assert metadata["version"] in metadata["changelog"]
    for part in ("inputs", "outputs"):
        for tensor in metadata["network_data_format"][part].values():
            assert tensor["spatial_shape"] == [config("inference.json")["image_size"]] * 2
            assert tensor["num_channels"] == config("inference.json")["channels"]


def test_the_bundle_has_the_model_zoos_files() -> None:
    for name in ("LICENSE", "docs/README.md", "configs/metadata.json", "configs/inference.json"):
        assert (BUNDLE / name).stat().st_size > 0, name


def test_the_documentation_names_every_config() -> None:
    text = (BUNDLE / "docs" / "README.md").read_text()
    missing = [f.name for f in CONFIGS.iterdir() if f.name not in text and f.suffix == ".json"]
    assert missing == []


def test_logging_conf_is_accepted_by_monai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    applied = []
    monkeypatch.setattr(logging.config, "fileConfig", lambda *args, **kwargs: applied.append(args))
    monkeypatch.setattr("monai.bundle.workflows.fileConfig", logging.config.fileConfig)
    ConfigWorkflow(str(CONFIGS / "train.json"))
    assert len(applied) == 1


# ---- The configs agree with each other and with the code ----


def test_network_definitions_are_the_same_wherever_they_are_repeated() -> None:
    train, stage_2, evaluate, inference = (config(name) for name in STAND_ALONE)
    networks = [train["network_def"], stage_2["network_def"], evaluate["disentangler"], inference["disentangler"]]
    assert all(network == networks[0] for network in networks)
    assert stage_2["identity_vae"] == evaluate["network_def"]["identity_vae"]
    assert evaluate["network_def"] == inference["network_def"]
    for name in (
        "bundle_root",
        "image_size",
        "channels",
        "num_classes",
        "latent_sizes",
        "encoder_widths",
        "decoder_widths",
    ):
        assert all(other[name] == train[name] for other in (stage_2, evaluate, inference)), name


@pytest.mark.parametrize("name", sorted(f.name for f in CONFIGS.glob("*.json")))
def test_every_weighted_term_is_known(name: str) -> None:
    known = VAE_TERMS if "vae" in name else TERMS
    weights = config(name).get("weights")
    assert weights is None or set(weights) == set(known)


def test_overlays_of_weights_go_term_by_term() -> None:
    """An overlay's dict replaces the base's, so that a term cannot keep a forgotten weight."""
    assert set(config("paper.json")["weights"]) == set(config("train.json")["weights"])


@pytest.mark.parametrize("name", STAND_ALONE)
def test_a_misspelt_override_is_refused_by_name(name: str) -> None:
    wrong, right = {
        "evaluate.json": ("verifier_step", "verifier_steps"),
        "inference.json": ("batchsize", "batch_size"),
    }.get(name, ("max_epoch", "max_epochs"))
    with pytest.raises(RuntimeError) as refused:
        workflow(name, max_epoch=1, **{} if wrong == "max_epoch" else {wrong: 1}).initialize()
    error = unwrapped(refused.value)
    assert isinstance(error, OverrideError)
    assert "'max_epoch' (given: 1) is read by nothing" in str(error)
    assert f"'{wrong}' (given: 1) is read by nothing; did you mean '{right}'?" in str(error)


@pytest.mark.parametrize("name", sorted(f.name for f in CONFIGS.glob("*.json")))
def test_every_component_is_named_in_full_and_exists(name: str) -> None:
    def targets(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["_target_"]] if "_target_" in node else []
            return own + [t for v in node.values() for t in targets(v)]
        return [t for v in node for t in targets(v)] if isinstance(node, list) else []

    named = [target for target in targets(config(name)) if not target.startswith("@")]
    assert [target for target in named if "." not in target or locate(target) is None] == []


# ---- Evaluation ----


def test_judging_then_evaluating_writes_rows_and_report(trained: Trained, tmp_path: Path) -> None:
    tiny = {"image_size": 32, "verifier_steps": 2, "medical_steps": 2, "bootstrap": 5, "plain_vae_epochs": 1}
    where = {"output_dir": str(tmp_path / "tables"), "judges_dir": str(tmp_path / "judges")}
    options = tiny | where | {"manifest": str(trained.manifest), "model_file": str(trained.output / "model.pt")}
    execute("evaluate.json", "quick_evaluate.json", run_id="judging", policy="latents", **options)
    judges = {f: f.stat().st_mtime_ns for f in (tmp_path / "judges").glob("*.safetensors")}
    assert judges and not (tmp_path / "tables").exists()
    execute("evaluate.json", "quick_evaluate.json", run_id="evaluating", policy="latents", **options)
    assert judges == {f: f.stat().st_mtime_ns for f in (tmp_path / "judges").glob("*.safetensors")}
    rows = [json.loads(line) for line in (tmp_path / "tables" / "rows.jsonl").read_text().splitlines()]
    methods = {row["method"] for row in rows}
    assert {"reconstruction", "identity replacement", "medical replacement", "VAE (plain)"} <= methods
    assert "Table 3" in (tmp_path / "tables" / "report.md").read_text()
    assert not {row["metric"] for row in rows} & {"adaptive_auc"} and not (tmp_path / "tables" / "attacks.csv").exists()


@pytest.mark.parametrize("least", [0.0, 1.1])
def test_every_attack_is_made_but_speaks_only_where_the_verifier_knows_enough(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: float
) -> None:
    monkeypatch.setattr("monai_anon.evaluation.judges.LEAST_VERIFIER_AUC", least)
    tiny = {"image_size": 32, "verifier_steps": 2, "medical_steps": 2, "bootstrap": 5, "plain_vae_epochs": 1}
    where = {"output_dir": str(tmp_path / "run"), "judges_dir": str(tmp_path / "judges")}
    options = tiny | where | {"manifest": str(trained.manifest), "model_file": str(trained.output / "model.pt")}
    execute("evaluate.json", run_id="evaluating", policy="latents", attack_steps=2, **options)
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


def test_an_attack_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"attacks: unknown \['telepathy'\]; known are \['static', 'adaptive', "):
        Settings(0.05, attacks=["telepathy"])


# ---- Inference ----


def anonymise(pictures: Path, output: Path, **overrides: Any) -> None:
    execute(
        "inference.json", kind="infer", dataset_dir=str(pictures), output_dir=str(output), policy="latents", **overrides
    )


def test_what_the_network_returns_is_written_upright_pixel_by_pixel(pictures: Path, tmp_path: Path) -> None:
    """An identity in place of the network: files, orientation and the range are all that is left."""
    (tmp_path / "any.pt").touch()
    same = {"network_def": {"_target_": "torch.nn.Identity"}, "load": "$lambda: None", "image_size": 32}
    anonymise(pictures, tmp_path / "out", **same, model_file=str(tmp_path / "any.pt"))
    for name in ("a/x.png", "b/x.png", "b/n.a.m.e.PNG"):
        with Image.open(pictures / name) as before, Image.open(tmp_path / "out" / result(name)) as after:
            assert after.mode == "L" and np.array_equal(np.asarray(after), np.asarray(before)), name


def result(name: str) -> Path:
    path = Path(name)
    return path.with_name(f"{path.stem}_anonymised.png")


def test_a_folder_becomes_anonymised_files_of_the_same_names(trained: Trained, pictures: Path, tmp_path: Path) -> None:
    model = {"image_size": 32, "model_file": str(trained.output / "model.pt"), "seed": 0}
    anonymise(pictures, tmp_path / "one", **model)
    made = sorted(f.relative_to(tmp_path / "one") for f in (tmp_path / "one").rglob("*") if f.is_file())
    assert made == sorted(result(str(f.relative_to(pictures))) for f in pictures.rglob("*") if f.is_file())
    with pytest.raises(RuntimeError) as refused:
        anonymise(pictures, tmp_path / "one", **model)
    assert isinstance(unwrapped(refused.value), FolderError) and "--overwrite True" in str(unwrapped(refused.value))
    anonymise(pictures, tmp_path / "two", **model)
    anonymise(pictures, tmp_path / "other", **model | {"seed": None})
    pixels = [[np.asarray(Image.open(tmp_path / run / name)) for name in made] for run in ("one", "two", "other")]
    assert all(np.array_equal(a, b) for a, b in zip(pixels[0], pixels[1]))
    assert not any(np.array_equal(a, b) for a, b in zip(pixels[0], pixels[2]))


def test_copies_keep_their_names_where_nothing_of_the_image_but_a_code_reaches_them(
    pictures: Path, tmp_path: Path
) -> None:
    execute(
        "inference.json",
        kind="infer",
        dataset_dir=str(pictures),
        output_dir=str(tmp_path / "out"),
        bundle_root=str(BUNDLE),
    )
    made = {str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*") if f.is_file()}
    assert made == {str(result(name)) for name in ("a/x.png", "b/x.png", "b/n.a.m.e.PNG")}


@pytest.mark.parametrize("name", ["evaluate.json", "inference.json"])
def test_without_a_model_the_commands_that_make_one_are_named(name: str, tmp_path: Path, pictures: Path) -> None:
    missing = {"model_file": str(tmp_path / "none.pt"), "dataset_dir": str(pictures)}
    started = workflow(name, **missing, output_dir=str(tmp_path / "out"))
    started.initialize()
    with pytest.raises(RuntimeError) as refused:
        started.run()
    error = unwrapped(refused.value)
    assert isinstance(error, MissingFileError) and str(error).startswith(f"{tmp_path}/none.pt is missing")
    assert "configs/train.json" in str(error) and "configs/train_identity_vae.json" in str(error)


def test_pre_and_postprocessing_need_monai_only() -> None:
    """MONAI Deploy runs them without this package."""
    inference = config("inference.json")
    text = json.dumps([inference["preprocessing"], inference["postprocessing"]])
    assert "monai_anon" not in text
    for expression in (part for part in text.split('"') if part.startswith("$")):
        ast.parse(expression[1:])
