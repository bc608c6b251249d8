"""Every bundle as MONAI sees it: its configs resolve, agree with each other, and refuse as documented."""

from __future__ import annotations

import ast
import json
import logging.config
import shutil
import subprocess
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
from bundle_commands import BUNDLES, CHEST, FACE, IRIS, STAND_ALONE, Bundle
from conftest import ROOT
from monai.bundle import ConfigParser, ConfigWorkflow, verify_metadata, verify_net_in_out

from monai_anon.evaluation.protocol import Settings
from monai_anon.identity_vae_step import VAE_TERMS
from monai_anon.overrides import OverrideError
from monai_anon.preconditions import unwrapped
from monai_anon.recipe import TERMS

pytestmark = pytest.mark.filterwarnings("ignore")
# A config, its overlays and the other name of `run`; every bundle has these.
COMMON = [
    ("training", "train.json"),
    ("training", "train.json", "quick.json"),
    ("training", "train.json", "paper.json"),
    ("training", "train.json", "paper_losses.json"),
    ("training", "train.json", "confounded.json"),
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
PROTOCOLS = {IRIS: "disjoint.json", FACE: "scenes.json"}
BASES = (("training", "train.json"), ("training", "train_identity_vae.json"), ("evaluating", "evaluate.json"))
COMBINATIONS = [(bundle, *files) for bundle in BUNDLES for files in COMMON]
COMBINATIONS += [(bundle, *files, overlay) for bundle, overlay in PROTOCOLS.items() for files in BASES]
EVERY_CONFIG = [(bundle, file.name) for bundle in BUNDLES for file in sorted(bundle.configs.glob("*.json"))]


def named(value: Any) -> str:
    return value.name if isinstance(value, Bundle) else "+".join(getattr(v, "name", v) for v in value)


every_config = pytest.mark.parametrize(
    ("bundle", "name"), EVERY_CONFIG, ids=lambda value: getattr(value, "name", value)
)


@pytest.fixture(params=BUNDLES, ids=named)
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return request.param


# ---- What MONAI and the model zoo ask of a bundle ----


@pytest.mark.parametrize("files", COMBINATIONS, ids=named)
def test_both_run_ids_do_the_same_with_every_overlay(files: tuple[Any, ...]) -> None:
    parser = files[0].parser(*files[2:])
    assert parser[files[1]] == parser["run"] and parser["run"]


@pytest.mark.parametrize("files", [c for c in COMBINATIONS if len(c) > 3], ids=named)
def test_overlays_pass_the_check_of_overrides(files: tuple[Any, ...]) -> None:
    started = files[0].workflow(*files[2:])
    checks = [i for i, step in enumerate(started.parser["initialize"]) if "refuse_misspelt" in str(step)]
    assert len(checks) == 1  # an overlay's own steps come behind it
    started.init_id = f"initialize::{checks[0]}"  # alone, while the others stay for what they read
    started.initialize()


def test_an_overlay_for_many_gpus_lets_the_ranks_meet_before_anything_is_made(bundle: Bundle) -> None:
    for base, overlay in (("train", "multi_gpu_train"), ("train_identity_vae", "multi_gpu_train_identity_vae")):
        steps = bundle.parser(f"{base}.json", f"{overlay}.json")["initialize"]
        alone, (meeting,) = bundle.parser(f"{base}.json")["initialize"], [s for s in steps if "ranks.join" in str(s)]
        assert all(step in steps for step in alone)
        assert base != "train" or steps.index(meeting) < steps.index("$@train::step")


@pytest.mark.parametrize("where", ["bundle", "root"])
def test_the_bundle_finds_itself(bundle: Bundle, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle.folder if where == "bundle" else ROOT)
    for name in STAND_ALONE:
        parser = ConfigParser(bundle.config(name))
        assert Path(parser.get_parsed_content("bundle_root")).resolve() == bundle.folder
        assert Path(parser.get_parsed_content("output_dir")).resolve().is_relative_to(bundle.folder / "output")


def test_the_network_maps_the_declared_input_to_the_declared_output(bundle: Bundle) -> None:
    files = [str(bundle.configs / name) for name in ("metadata.json", "inference.json")]
    verify_net_in_out("network_def", *files, device="cpu", bundle_root=".")


def test_metadata_fits_the_schema_and_the_version_is_in_the_changelog(bundle: Bundle, tmp_path: Path) -> None:
    schema = shutil.copy(Path(__file__).parent / "schema" / "metadata.schema.json", tmp_path / "schema.json")
    verify_metadata(str(bundle.configs / "metadata.json"), str(schema))
    metadata = bundle.config("metadata.json")
    versions = sorted(metadata["changelog"], key=lambda version: tuple(map(int, version.split("."))))
    assert metadata["version"] == versions[-1]  # the zoo publishes what is new in the changelog
    for part in ("inputs", "outputs"):
        for tensor in metadata["network_data_format"][part].values():
            assert tensor["spatial_shape"] == [bundle.config("inference.json")["image_size"]] * 2
            assert tensor["num_channels"] == bundle.config("inference.json")["channels"]


def test_the_bundle_has_the_model_zoos_files(bundle: Bundle) -> None:
    for name in ("LICENSE", "docs/README.md", "configs/metadata.json", "configs/inference.json"):
        assert (bundle.folder / name).stat().st_size > 0, name


def test_a_bundle_has_neither_code_nor_large_files(bundle: Bundle) -> None:
    """The zoo keeps code out of a bundle's root, and files above 25 MB apart; exports are made, not kept."""
    listed = subprocess.run(["git", "ls-files", "."], cwd=bundle.folder, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout")
    files = [bundle.folder / name for name in listed.stdout.splitlines()]
    assert files and {file.suffix for file in files} <= {"", ".json", ".conf", ".md", ".png", ".pt"}
    assert all(file.stat().st_size < 25e6 for file in files)


def test_the_metadata_has_the_tested_versions(bundle: Bundle) -> None:
    metadata = bundle.config("metadata.json")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = dict(line.split(";")[0].split("==") for line in lines if "==" in line and not line.startswith("#"))
    said = {name: metadata[f"{name}_version"] for name in ("monai", "numpy")} | {"torch": metadata["pytorch_version"]}
    said |= metadata["required_packages_version"]
    assert said == {name: tested[name] for name in said}


def test_the_documentation_names_every_config(bundle: Bundle) -> None:
    text = (bundle.folder / "docs" / "README.md").read_text()
    assert [f.name for f in bundle.configs.glob("*.json") if f.name not in text] == []


def test_logging_conf_is_accepted_by_monai(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    applied = []
    monkeypatch.setattr(logging.config, "fileConfig", lambda *args, **kwargs: applied.append(args))
    monkeypatch.setattr("monai.bundle.workflows.fileConfig", logging.config.fileConfig)
    ConfigWorkflow(str(bundle.configs / "train.json"))
    assert len(applied) == 1


# ---- The configs agree with each other and with the code ----


def test_network_definitions_are_the_same_wherever_they_are_repeated(bundle: Bundle) -> None:
    train, stage_2, evaluate, inference = (bundle.config(name) for name in STAND_ALONE)
    networks = [train["network_def"], stage_2["network_def"], evaluate["disentangler"], inference["disentangler"]]
    for network in networks[:2]:  # what holds a row for each patient is the trainings' alone
        classifier = network.pop("identity_classifier", {})
        assert not classifier or classifier["classes"] == "$@train#dataset.num_patients"
    assert all(network == networks[0] for network in networks)
    assert stage_2["identity_vae"] == evaluate["network_def"]["identity_vae"]
    assert evaluate["network_def"] == inference["network_def"]
    for name in ("bundle_root", "image_size", "channels", "num_classes", "latent_sizes"):
        assert all(other[name] == train[name] for other in (stage_2, evaluate, inference)), name
    for name in ("encoder_widths", "decoder_widths"):
        assert all(other[name] == train[name] for other in (stage_2, evaluate, inference)), name
    assert {config["manifest_path"]["kind"] for config in (train, stage_2, evaluate)} == {bundle.name}


@every_config
def test_every_weighted_term_is_known(bundle: Bundle, name: str) -> None:
    known = VAE_TERMS if "vae" in name else TERMS
    weights = bundle.config(name).get("weights")
    assert weights is None or set(weights) == set(known)


def test_overlays_of_weights_go_term_by_term(bundle: Bundle) -> None:
    """An overlay's dict replaces the base's, so that a term cannot keep a forgotten weight."""
    assert set(bundle.config("paper.json")["weights"]) == set(bundle.config("train.json")["weights"])


def test_where_people_are_classes_nobody_becomes_another_person() -> None:
    """And the privacy loss of Eq. 5 stands in for the repulsions of Eq. 7."""
    for name in STAND_ALONE[:2]:
        assert IRIS.config(name)["warp"] == 0 < CHEST.config(name)["warp"]
    weights = IRIS.config("train_identity_vae.json")["weights"]
    assert weights["entropy"] > 0 == weights["repulsion_original"] == weights["repulsion_other"]


@pytest.mark.parametrize("name", STAND_ALONE)
def test_a_misspelt_override_is_refused_by_name(bundle: Bundle, name: str) -> None:
    wrong, right = {
        "evaluate.json": ("verifier_step", "verifier_steps"),
        "inference.json": ("batchsize", "batch_size"),
    }.get(name, ("max_epoch", "max_epochs"))
    with pytest.raises(RuntimeError) as refused:
        bundle.workflow(name, max_epoch=1, **{} if wrong == "max_epoch" else {wrong: 1}).initialize()
    error = unwrapped(refused.value)
    assert isinstance(error, OverrideError)
    assert "'max_epoch' (given: 1) is read by nothing" in str(error)
    assert f"'{wrong}' (given: 1) is read by nothing; did you mean '{right}'?" in str(error)


@every_config
def test_every_component_is_named_in_full_and_exists(bundle: Bundle, name: str) -> None:
    def targets(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["_target_"]] if "_target_" in node else []
            return own + [t for v in node.values() for t in targets(v)]
        return [t for v in node for t in targets(v)] if isinstance(node, list) else []

    named = [target for target in targets(bundle.config(name)) if not target.startswith("@")]
    assert [target for target in named if "." not in target or locate(target) is None] == []


def test_an_attack_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"attacks: unknown \['telepathy'\]; known are \['static', 'adaptive', "):
        Settings(0.05, attacks=["telepathy"])


def test_pre_and_postprocessing_need_monai_only(bundle: Bundle) -> None:
    """MONAI Deploy runs them without this package."""
    inference = bundle.config("inference.json")
    text = json.dumps([inference["preprocessing"], inference["postprocessing"]])
    assert "monai_anon" not in text
    for expression in (part for part in text.split('"') if part.startswith("$")):
        ast.parse(expression[1:])
