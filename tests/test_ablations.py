"""Ablations: variants differ in what they say they do, cost the same, survive failures, and are measured alike."""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire.parser
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from test_judges import toy_cohort
from test_protocol import Halves

from monai_anon.evaluation.ablations import run as ablations
from monai_anon.evaluation.ablations.plans import REALISM, draw_training, write_subset
from monai_anon.evaluation.ablations.run import Reconstructions, run_ablation, table_4, table_5
from monai_anon.evaluation.protocol import Settings
from monai_anon.evaluation.reporting.runs import read_pictures, read_run
from monai_anon.evaluation.tables import PAPER, Row, read_rows
from monai_anon.manifest import load_manifest
from monai_anon.model_files import save_weights, write_record
from monai_anon.phantoms import chest

pytestmark = pytest.mark.filterwarnings("ignore")
CHEST = Path(__file__).parent.parent / "bundles" / "chest"
Runner = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chest bundle with networks, images and judges' intervals that take no time."""
    folder = tmp_path_factory.mktemp("bundle")
    shutil.copytree(CHEST / "configs", folder / "configs")
    tiny = {"image_size": 32, "batch_size": 8, "latent_sizes": [8, 4, 6], "device": "cpu", "recogniser_epochs": 1}
    for name in ("train.json", "evaluate.json", "realism.json"):
        path = folder / "configs" / name
        content = json.loads(path.read_text())
        if name == "train.json":
            content |= tiny
            content["recogniser"]["network"]["widths"] = [8, 8, 8]
            content["train"]["step"]["swap_discriminator"]["widths"] = [8, 8, 8]
            for network, widths in (("encoder", [8, 16]), ("decoder", [16, 8])):
                content["network_def"][network]["widths"] = widths
        elif name == "realism.json":
            content["train#step#discriminator"]["widths"] = [8, 8, 8]
        else:
            content["bootstrap"] = 20
        path.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training, 24 validation and 24 test images of 32 pixels."""
    folder = tmp_path_factory.mktemp("cohort") / "chest"
    return chest.write_cohort(folder, 3, 32, (48, 24, 24), (12, 6, 6), progress=False)


def options_of(command: list[str]) -> dict[str, Any]:
    """A command's overrides, as MONAI's command line (fire) reads them."""
    words = command[5:]
    return {name[2:]: fire.parser.DefaultParseValue(value) for name, value in zip(words[::2], words[1::2])}


class Stub:
    """In place of a process: weights drawn by the folder's name, and a record; `broken` folders fail."""

    def __init__(self, bundle: Path, broken: str = "nothing"):
        self.network = ConfigParser(json.loads((bundle / "configs" / "train.json").read_text()))
        self.broken, self.commands = broken, []

    def __call__(self, command: list[str]) -> int:
        self.commands.append(command)
        options = options_of(command)
        folder = Path(options["output_dir"])
        if self.broken in str(folder):
            return 3
        torch.manual_seed(sum(map(ord, str(folder))))
        weights = {
            name: torch.randn_like(tensor) * 0.1 if tensor.is_floating_point() else tensor
            for name, tensor in self.network.get_parsed_content("network_def").state_dict().items()
        }
        save_weights(weights, folder / "disentangler.pt")
        record = {"images_seen": 48 * options["max_epochs"], "iterations": 6 * options["max_epochs"], "seconds": 90.0}
        write_record(record, folder / "disentangler.pt")
        return 0


class InProcess:
    """Runs MONAI's workflow without a new interpreter, and notes what the step was given."""

    def __init__(self) -> None:
        self.steps: dict[str, Any] = {}

    def __call__(self, command: list[str]) -> int:
        options = options_of(command)
        workflow = ConfigWorkflow(
            options.pop("config_file"), logging_file=False, run_id="training", workflow_type="train", **options
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        folder = Path(options["output_dir"])
        self.steps["/".join(folder.parts[-2:])] = workflow.parser.get_parsed_content("train#step")
        return 0


def quiet(_: str) -> None:
    """Nobody listens."""


def ablate(name: str, bundle: Path, cohort: Path, output: Path, run: Runner, **options: Any) -> int:
    given = {"epochs": 2, "manifest": cohort, "images": (24, 48), "say": quiet} | options
    return run_ablation(name, bundle, output, run=run, **given)


# ---- Table 4 ----


@pytest.fixture(scope="module")
def realism(bundle: Path, cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, InProcess, int]:
    """All six variants really trained, for two epochs of six batches."""
    output, run = tmp_path_factory.mktemp("realism") / "out", InProcess()
    return output, run, ablate("realism", bundle, cohort, output, run)


def test_each_variant_trains_the_realism_terms_that_it_is_named_for_and_no_other(
    realism: tuple[Path, InProcess, int],
) -> None:
    steps = realism[1].steps
    ours = {"ssim", "psnr", "adversarial", "pixel", "texture", "swap_adversarial"}
    trained = {place: {t for t, w in step.recipe.weights.items() if w > 0} & ours for place, step in steps.items()}
    both, everything = {"ssim", "psnr"}, {"ssim", "psnr", "adversarial"}
    assert trained == {
        "only_ssim/seed_0": {"ssim"},
        "only_psnr/seed_0": {"psnr"},
        "ssim_and_psnr/seed_0": both,
        "gan/seed_0": everything,
        "seed_0/start": both,
        "fine_tuned/seed_0": everything,
        "augmented_gan/seed_0": everything,
    }
    assert {place for place, step in steps.items() if step.critics} == {
        place for place, terms in trained.items() if "adversarial" in terms
    }
    assert [place for place, step in steps.items() if not step.recipe.augment] == ["gan/seed_0"]
    assert {step.recipe.weights[term] for step in steps.values() for term in ours} == {0.0, 0.1, 1.0}


def test_all_variants_see_as_many_images_and_the_fine_tuned_one_counts_both_trainings(
    realism: tuple[Path, InProcess, int],
) -> None:
    output, _, code = realism
    rows = read_rows(output / "rows.jsonl")
    assert code == 0
    assert {(row.method, row.images_seen) for row in rows} == {(title, 96) for title in REALISM}
    iterations = {row.method: row.value for row in rows if row.metric == "training_iterations"}
    assert iterations == dict.fromkeys(REALISM, 12)


def test_the_fine_tuned_variant_starts_from_the_weights_of_its_first_training(
    bundle: Path, cohort: Path, tmp_path
) -> None:
    run = Stub(bundle)
    ablate("realism", bundle, cohort, tmp_path / "out", run, epochs=5)
    by_folder = {options["output_dir"]: options for options in map(options_of, run.commands)}
    fine = by_folder[str(tmp_path / "out" / "fine_tuned" / "seed_0")]
    start = by_folder[str(tmp_path / "out" / "fine_tuned" / "seed_0" / "start")]
    assert fine["initial_weights"] == f"{start['output_dir']}/disentangler.pt"
    assert (start["max_epochs"], fine["max_epochs"]) == (2, 3)
    # 0.4 and 0.15 of five epochs are all of two, and 0.375 of two; the second training waits no more.
    assert (start["swaps_from"], start["independence_from"]) == (1.0, 0.375)
    assert (fine["swaps_from"], fine["independence_from"]) == (0.0, 0.0)
    assert {options["max_epochs"] for options in by_folder.values() if options not in (fine, start)} == {5}


def test_rows_say_what_was_measured_of_which_weights(realism: tuple[Path, InProcess, int]) -> None:
    rows = read_rows(realism[0] / "rows.jsonl")
    ssim = [row for row in rows if row.metric == "ssim_original"]
    assert [row.method for row in ssim] == list(REALISM)
    assert all(row.ci_low <= row.value <= row.ci_high and row.n == 24 and row.revision for row in ssim)
    assert len({row.weights for row in ssim}) == len(ssim)
    metrics = Counter(row.metric for row in rows)
    assert all(metrics[m] == 6 for m in ("own_original_accuracy", "own_original_accuracy_eer", "own_finding_accuracy"))


def test_the_folder_holds_table_picture_and_a_report_that_says_what_differs(
    realism: tuple[Path, InProcess, int], cohort: Path
) -> None:
    output = realism[0]
    page = (output / "report.md").read_text()
    assert "pictures/figure_8.png" in page and (output / "pictures" / "figure_8.png").is_file()
    assert page.index("| only SSIM") < page.index("paper (iris, other data)")
    assert "not against them" in page and "half of them" in page
    command = f"monai-anon ablation realism --bundle {realism[0].parent.parent}"
    assert command.split(" --bundle")[0] in page and "--epochs 2 --seeds 0" in page
    (entry,) = json.loads((output / "pictures" / "pictures.json").read_text())
    assert entry["columns"] == ["original", *REALISM]
    told = page + (output / "rows.jsonl").read_text() + json.dumps(entry) + (output / "table_4.csv").read_text()
    manifest = load_manifest(cohort)
    for part in manifest.parts.values():
        assert not [e for e in part if e["patient"] in told or Path(e["image"]).name in told]


def test_the_folder_reads_as_a_run_of_the_report(realism: tuple[Path, InProcess, int]) -> None:
    run = read_run(realism[0])
    assert run.generated and run.command.startswith("monai-anon ablation realism")
    pictures, missing = read_pictures(run)
    assert len(pictures) == 1 and not missing


# ---- Table 5 ----


def test_fewer_images_are_trained_for_as_many_iterations_and_validated_as_often(
    bundle: Path, cohort: Path, tmp_path
) -> None:
    run = InProcess()
    assert ablate("data", bundle, cohort, tmp_path / "out", run, epochs=1) == 0
    rows = {(row.method, row.metric): row for row in read_rows(tmp_path / "out" / "rows.jsonl")}
    assert rows["24 images", "training_iterations"].value == rows["48 images", "training_iterations"].value == 6
    assert rows["24 images", "ssim_original"].images_seen == rows["48 images", "ssim_original"].images_seen == 48
    assert abs(rows["24 images", "training_images"].value - 24) <= 2 < rows["48 images", "training_images"].value - 24
    assert rows["24 images", "ssim_original"].dataset == rows["48 images", "ssim_original"].dataset
    events = [len(list((tmp_path / "out" / f"images_{n}" / "seed_0" / "pictures").iterdir())) for n in (24, 48)]
    assert events == [1, 1]


def test_a_subset_holds_whole_patients_of_the_training_part_and_copies_no_image(cohort: Path, tmp_path) -> None:
    whole = load_manifest(cohort)
    small = load_manifest(write_subset(whole, 20, 0, tmp_path / "a" / "manifest.json"))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["manifest.json"]
    taken = {entry["patient"] for entry in small.parts["training"]}
    assert small.parts["training"] == [
        entry | {"image": own["image"]}
        for entry, own in zip(
            [entry for entry in whole.parts["training"] if entry["patient"] in taken], small.parts["training"]
        )
    ]
    for part in ("validation", "test"):
        assert [small.image_path(e) for e in small.parts[part]] == [whole.image_path(e) for e in whole.parts[part]]


def test_no_number_of_whole_patients_of_the_draw_is_nearer_and_subsets_of_a_seed_are_nested(
    cohort: Path, tmp_path
) -> None:
    whole = load_manifest(cohort)
    sizes = Counter(entry["patient"] for entry in whole.parts["training"])
    drawn = {}
    for count in (1, 11, 20, 30, 48):
        manifest = load_manifest(write_subset(whole, count, 7, tmp_path / str(count) / "manifest.json"))
        drawn[count] = {entry["patient"] for entry in manifest.parts["training"]}
        assert abs(len(manifest.parts["training"]) - count) <= max(sizes.values()) / 2 or len(drawn[count]) == 1
    assert drawn[1] <= drawn[11] <= drawn[20] <= drawn[30] <= drawn[48] == set(sizes)
    other = load_manifest(write_subset(whole, 20, 8, tmp_path / "other" / "manifest.json"))
    assert {entry["patient"] for entry in other.parts["training"]} != drawn[20]


def test_iterations_are_counted_by_the_images_that_were_drawn_and_not_by_those_asked_for(
    bundle: Path, cohort: Path, tmp_path
) -> None:
    """Half a patient fewer may be a batch fewer, and a batch of three is a third of the training."""
    entries = load_manifest(cohort).parts["training"]
    seed = next(seed for seed in range(99) if len(draw_training(entries, 24, seed)) < 24)
    said: list[str] = []
    given = {"epochs": 6, "manifest": cohort, "images": (24, 48), "seeds": (seed,), "say": said.append}
    run_ablation("data", bundle, tmp_path / "out", dry_run=True, **given)
    assert len(draw_training(entries, 24, seed)) // 8 == 2
    assert "--max_epochs 18 --validate_every 3 --recogniser_epochs 3" in said[0]  # 6 epochs of 6 batches


def test_all_images_need_no_manifest_of_their_own(bundle: Path, cohort: Path, tmp_path) -> None:
    run = Stub(bundle)
    ablate("data", bundle, cohort, tmp_path / "out", run)
    part, whole = map(options_of, run.commands)
    assert whole["manifest"] == str(cohort) and part["manifest"].startswith(str(tmp_path / "out" / "images_24"))
    assert (whole["max_epochs"], part["max_epochs"]) == (2, 4)
    assert (whole["recogniser_epochs"], part["recogniser_epochs"], part["validate_every"]) == (1, 2, 2)


# ---- going on, failing, refusing ----


def test_a_finished_variant_is_neither_trained_nor_measured_again(bundle: Path, cohort: Path, tmp_path) -> None:
    ablate("data", bundle, cohort, tmp_path / "out", Stub(bundle))
    before = (tmp_path / "out" / "rows.jsonl").read_bytes()
    again = Stub(bundle)
    assert ablate("data", bundle, cohort, tmp_path / "out", again) == 0
    assert again.commands == [] and (tmp_path / "out" / "rows.jsonl").read_bytes() == before


def test_a_failed_variant_is_named_and_costs_neither_the_others_nor_a_second_try(
    bundle: Path, cohort: Path, tmp_path
) -> None:
    said: list[str] = []
    run = Stub(bundle, broken="only_psnr")
    assert ablate("realism", bundle, cohort, tmp_path / "out", run, say=said.append) == 1
    assert said[-1].startswith("not measured: only PSNR, seed 0: a training ended with exit code 3")
    methods = {row.method for row in read_rows(tmp_path / "out" / "rows.jsonl")}
    assert methods == set(REALISM) - {"only PSNR"}
    assert "**Not measured: only PSNR, seed 0" in (tmp_path / "out" / "report.md").read_text()
    repaired = Stub(bundle)
    assert ablate("realism", bundle, cohort, tmp_path / "out", repaired) == 0
    assert [Path(options_of(c)["output_dir"]).parent.name for c in repaired.commands] == ["only_psnr"]
    assert "Not measured" not in (tmp_path / "out" / "report.md").read_text()


def test_where_everything_fails_nothing_is_reported(bundle: Path, cohort: Path, tmp_path) -> None:
    assert ablate("data", bundle, cohort, tmp_path / "out", Stub(bundle, broken="seed_0")) == 1
    assert not (tmp_path / "out" / "report.md").exists()


def test_weights_without_a_record_are_measured_and_their_cost_is_said_to_be_unknown(
    bundle: Path, cohort: Path, tmp_path
) -> None:
    run = Stub(bundle)

    def without_record(command: list[str]) -> int:
        code = run(command)
        (Path(options_of(command)["output_dir"]) / "disentangler.json").unlink()
        return code

    ablate("data", bundle, cohort, tmp_path / "out", without_record)
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    unknown = {row.metric for row in rows if row.value is None and "no record" in row.note}
    assert unknown == {"training_iterations", "training_minutes"}
    assert {row.images_seen for row in rows} == {0}


def test_another_budget_or_a_folder_of_other_things_is_refused_and_left_alone(
    bundle: Path, cohort: Path, tmp_path
) -> None:
    ablate("data", bundle, cohort, tmp_path / "out", Stub(bundle))
    with pytest.raises(ValueError, match="epochs is 2, not 3"):
        ablate("data", bundle, cohort, tmp_path / "out", Stub(bundle), epochs=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="not empty and holds no ablation"):
        ablate("data", bundle, cohort, tmp_path / "mine", Stub(bundle))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("realism", {"epochs": 1}, "at least 2"),
        ("data", {"images": (24, 100)}, r"\[100\].*has 48 images"),
        ("data", {"epochs": 0}, "at least one epoch"),
        ("data", {"seeds": (1, 1)}, "seeds that all differ"),
        ("colour", {}, r"known are \['realism', 'data'\]"),
    ],
)
def test_what_does_not_do_is_refused_before_anything_is_written(
    name: str, options: dict[str, Any], message: str, bundle: Path, cohort: Path, tmp_path
) -> None:
    with pytest.raises(ValueError, match=message):
        ablate(name, bundle, cohort, tmp_path / "out", Stub(bundle), **options)
    assert not (tmp_path / "out").exists()


def test_dry_run_says_the_commands_as_typed_and_writes_nothing(tmp_path) -> None:
    """With the cohort's usual size where it is not made yet."""
    folder = tmp_path / "bundle"
    shutil.copytree(CHEST / "configs", folder / "configs")
    before = sorted(tmp_path.rglob("*"))
    said: list[str] = []
    for name in ("realism", "data"):
        assert run_ablation(name, folder, tmp_path / "out", epochs=30, dry_run=True, say=said.append) == 0
    lines = "\n".join(said).splitlines()
    commands = [line for line in lines if line.startswith("python -m monai.bundle run training --config_file ")]
    assert len(lines) - len(commands) == 6 + 2 and len(commands) == 7 + 2
    assert "--max_epochs 60 --validate_every 2" in commands[-2]
    assert "--max_epochs 30 --validate_every 1" in commands[-1]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("name", "images"), [("iris", 1165), ("face", 8210)])
def test_a_cohort_that_is_not_made_yet_is_the_size_of_its_own_kind(name: str, images: int, tmp_path) -> None:
    shutil.copytree(CHEST.parent / name / "configs", tmp_path / name / "configs")
    given = {"epochs": 2, "dry_run": True, "say": lambda line: None}
    assert run_ablation("data", tmp_path / name, tmp_path / "out", images=(images,), **given) == 0
    with pytest.raises(ValueError, match=f"the training part has {images} images"):
        run_ablation("data", tmp_path / name, tmp_path / "out", images=(images + 1,), **given)


def test_a_command_runs_as_a_process_and_its_exit_code_comes_back() -> None:
    assert ablations._run([sys.executable, "-c", "raise SystemExit(4)"]) == 4


# ---- what is measured, and the tables ----


def test_an_oracle_reconstructs_perfectly_and_knows_every_person_and_finding() -> None:
    rows = Reconstructions(Halves(), toy_cohort(), Settings(hit_threshold=0.01, n_bootstrap=20)).rows()
    found = {row.metric: row.value for row in rows}
    assert found["ssim_original"] == pytest.approx(1)
    assert found["own_finding_accuracy"] == 1
    assert found["own_original_accuracy"] > 0.99 and found["own_original_accuracy_eer"] > 0.99


def test_the_papers_threshold_says_nothing_of_an_encoder_of_another_scale_and_its_own_does() -> None:
    rows = Reconstructions(Halves(), toy_cohort(), Settings(hit_threshold=1e-9, n_bootstrap=20)).rows()
    found = {row.metric: row.value for row in rows}
    assert found["own_original_accuracy"] == 0.5 and found["own_original_accuracy_eer"] > 0.99


def test_without_two_images_of_a_patient_identity_is_not_measured_and_the_row_says_why() -> None:
    rows = Reconstructions(Halves(), toy_cohort(20, images=1), Settings(hit_threshold=0.01, n_bootstrap=20)).rows()
    silent = {row.metric: row.note for row in rows if row.value is None}
    assert set(silent) == {"own_original_accuracy", "own_original_accuracy_eer"}
    assert all("pairs of one patient" in note for note in silent.values())


def ours(method: str, value: float, seed: int = 0) -> Row:
    return Row(method, "phantom/test", "ssim_original", value, value - 0.1, value + 0.1, 10, seed, f"weights {seed}")


def test_table_4_has_a_line_a_variant_and_the_papers_figures_below_marked_as_of_other_data() -> None:
    table = table_4([ours("only SSIM", 0.7)])
    assert list(table["data"].unique()) == ["phantom/test", "paper (iris, other data)"]
    assert table.loc[0, "SSIM"] == "0.700 (0.600-0.800)"
    printed = table[table["data"] != "phantom/test"]
    assert list(printed["SSIM"]) == ["0.683", "0.669", "0.700", "0.574", "0.607", "0.534"]
    assert list(printed["method"]) == list(REALISM)


def test_table_5_has_the_papers_chest_figures() -> None:
    table = table_5([]).set_index("method")
    columns = ["SSIM", "identity recognition", "disease recognition"]
    assert list(table.loc["3,000 images", columns]) == ["0.656", "0.658", "0.771"]
    assert list(table.loc["6,000 images", columns]) == ["0.655", "0.772", "0.817"]
    assert set(table["data"]) == {PAPER}


def test_several_seeds_have_a_line_each_and_their_mean_with_the_widest_bounds() -> None:
    table = table_4([ours("only SSIM", 0.6, 0), ours("only SSIM", 0.8, 1)])
    mine = table[table["data"] == "phantom/test"].set_index("seed")["SSIM"]
    assert mine.to_dict() == {
        "0": "0.600 (0.500-0.700)",
        "1": "0.800 (0.700-0.900)",
        "mean of 2": "0.700 (0.500-0.900)",
    }


def test_every_seed_is_trained_and_its_rows_are_kept(bundle: Path, cohort: Path, tmp_path) -> None:
    run = Stub(bundle)
    ablate("data", bundle, cohort, tmp_path / "out", run, seeds=(0, 5))
    assert [options_of(command)["seed"] for command in run.commands] == [0, 0, 5, 5]
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    assert Counter((row.method, row.seed) for row in rows if row.metric == "ssim_original") == {
        (method, seed): 1 for method in ("24 images", "48 images") for seed in (0, 5)
    }
    assert (tmp_path / "out" / "report.md").read_text().count("mean of 2") == 2


def test_real_people_are_drawn_only_when_asked_for(
    bundle: Path, cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monai_anon.evaluation.ablations.run.is_generated", lambda manifest: False)
    for asked in (False, True):
        output = tmp_path / str(asked)
        assert ablate("data", bundle, cohort, output, Stub(bundle), pictures=asked) == 0
        page = (output / "report.md").read_text()
        assert ("figure_9.png" in page) is asked is (output / "pictures" / "figure_9.png").exists()
        assert ("--pictures draws them" in page) is not asked
        assert not json.loads((output / "run.json").read_text())["cohort"]["generated"]
