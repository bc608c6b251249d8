"""The bundle under torchrun: a killed rank, every stage and overlay, and another number of ranks.

torchrun is started once for all tests (`survived`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT
from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from monai_anon.preconditions import unwrapped

pytestmark = pytest.mark.filterwarnings("ignore")
TINY = {"image_size": 32, "batch_size": 4, "max_epochs": 2}
TINY |= {"manifest_path#images": [48, 24, 24], "manifest_path#patients": [12, 6, 6]}
OFTEN = {"recogniser_epochs": 1, "checkpoint_every": 2}
NARROW = {"network_def#encoder#widths": [8] * 4, "network_def#decoder#widths": [8] * 4, "latent_sizes": [8, 4, 6]}
# Of 12 iterations in 2 epochs. Checkpoint 8 is whole by then: rank 1 ends iteration 9 with gradients of rank 0.
CHECKPOINT, KILLED_AT = 8, 10
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT)}
ENVIRONMENT["CUDA_VISIBLE_DEVICES"] = ""


OTHERS = {"iris": {"manifest_path#patients": [12, 12, 12]}, "face": {}}  # irises are a closed set
SMALL = {"encoder_widths": [8] * 3, "decoder_widths": [8] * 4, "latent_sizes": [8, 4, 6], "max_epochs": 1}


def workflow(folder, name, *files, bundle="chest", **overrides):
    where = {"output_dir": str(folder / name), "dataset_dir": str(folder / "data")}
    configs = [str(ROOT / "bundles" / bundle / "configs" / file) for file in files]
    return ConfigWorkflow(configs, logging_file=False, **TINY | where | overrides)


def run(started, prepare=lambda trainer: None):
    """Train as MONAI does; the parser."""
    started.initialize()
    prepare(started.parser.get_parsed_content("train#trainer"))
    started.run()
    return started.parser


# ---- What each rank does ----


def train_all(folder, starts, rank):
    """Train, train the same again with rank 1 killed once, train the paper's two stages, and both stages of the other
    bundles; what all but the first two made.
    """

    def prepare(trainer):
        place = folder / f"start_{starts}_of_rank_{rank}"
        trainer.add_event_handler(Events.STARTED, lambda: place.write_text(str(trainer.state.iteration)))
        if (starts, rank) == (0, 1):
            die = Events.ITERATION_STARTED(once=KILLED_AT)
            trainer.add_event_handler(die, lambda: os.kill(os.getpid(), signal.SIGKILL))

    stay = {"finalize": []}  # in the group, for the next one
    run(workflow(folder, "whole", "train.json", "multi_gpu_train.json", **stay, **OFTEN))
    share = {"batch_size": "$8 // int(os.environ['WORLD_SIZE'])"}  # the same 4, however many ranks come back
    run(workflow(folder, "killed", "train.json", "multi_gpu_train.json", **stay, **OFTEN | share), prepare)
    stay |= NARROW
    critic = {"train#step#discriminator#widths": [8, 8]}
    files = "train.json", "paper.json", "multi_gpu_train.json"
    first = run(workflow(folder, "paper", *files, **stay, **critic, max_epochs=1))
    files = "train_identity_vae.json", "paper_identity_vae.json", "multi_gpu_train_identity_vae.json"
    second = run(workflow(folder, "paper", *files, **stay))
    made = {
        "paper": first.get_parsed_content("network_def").state_dict(),
        "vae": second.get_parsed_content("identity_vae").state_dict(),
    }
    for bundle, people in OTHERS.items():
        options = {"bundle": bundle, "finalize": []} | SMALL | people
        first = run(workflow(folder, bundle, "train.json", "multi_gpu_train.json", **options))
        files = "train_identity_vae.json", "multi_gpu_train_identity_vae.json"
        second = run(workflow(folder, bundle, *files, **options))
        made[bundle] = first.get_parsed_content("network_def").state_dict()
        made[f"{bundle}: vae"] = second.get_parsed_content("identity_vae").state_dict()
    return made


def main(folder):
    rank = int(os.environ["RANK"])
    with ExitStack() as stack:
        for writing in ("torch.save", "monai_anon.model_files.write_text", "PIL.Image.Image.save") if rank else ():
            stack.enter_context(mock.patch(writing, side_effect=AssertionError(f"{writing} by rank {rank}")))
        made = train_all(folder, int(os.environ["TORCHELASTIC_RESTART_COUNT"]), rank)
    torch.save(made, folder / f"rank_{rank}.pt")
    dist.destroy_process_group()


# ---- Tests ----


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    """The folder in which `main` ran, and torchrun's end."""
    folder = tmp_path_factory.mktemp("torchrun")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1"]
    ended = subprocess.run(
        [*launch, __file__, str(folder)], capture_output=True, text=True, timeout=300, check=False, env=ENVIRONMENT
    )
    return folder, ended


def assert_equal(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first:
            assert_equal(first[name], second[name])
    elif torch.is_tensor(first):
        assert torch.equal(first, second)
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second):
            assert_equal(one, other)
    else:
        assert first == second


@pytest.mark.slow
def test_a_killed_rank_does_not_change_what_is_trained(survived):
    """torchrun starts all ranks again, and they go on from the last checkpoint."""
    folder, ended = survived
    assert ended.returncode == 0, ended.stderr[-3000:]
    starts = {f.name: int(f.read_text()) for f in folder.glob("start_*")}
    assert starts == {f"start_{n}_of_rank_{rank}": n * CHECKPOINT for n in (0, 1) for rank in (0, 1)}
    for name in ("disentangler.pt", "checkpoint.pt"):
        assert_equal(*(torch.load(folder / training / name) for training in ("whole", "killed")))


@pytest.mark.slow
def test_every_stage_trains_one_network_and_rank_0_alone_writes(survived):
    """Batch normalisation too has the same statistics on both ranks."""
    folder, ended = survived
    first, second = (torch.load(folder / f"rank_{rank}.pt") for rank in (0, 1))
    assert any("running_mean" in name for name in first["paper"]) and first["vae"]
    assert_equal(first, second)
    files = [f.relative_to(folder / "paper").as_posix() for f in (folder / "paper").rglob("*") if f.is_file()]
    assert {"model.pt", "model.json", "identity_vae.pt", "identity_vae/checkpoint.pt"} <= set(files)
    logs = [name for name in files if "tfevents" in name]
    assert sorted(name.split("/")[0] for name in logs) == ["tensorboard", "tensorboard_identity_vae"]
    record = json.loads((folder / "paper" / "model.json").read_text())
    assert record["images_seen"] == 48  # one epoch of stage 1, all ranks together
    assert record["identity_vae"]["images_seen"] == 2 * 48
    assert ended.stderr.count("stage 2[1/6]") == 2, "a bar begins once an epoch, by one rank (and is redrawn at will)"


@pytest.mark.slow
@pytest.mark.parametrize("bundle", OTHERS)
def test_the_other_bundles_train_one_network_in_both_stages(survived, bundle):
    first, second = (torch.load(survived[0] / f"rank_{rank}.pt") for rank in (0, 1))
    assert first[bundle] and first[f"{bundle}: vae"]
    for name in (bundle, f"{bundle}: vae"):
        assert_equal(first[name], second[name])
    record = json.loads((survived[0] / bundle / "model.json").read_text())
    assert record["images_seen"] == 48 and record["bundle"].lower().startswith(bundle)


@pytest.mark.slow
def test_another_number_of_ranks_goes_on_with_as_many_images_a_batch(survived, tmp_path):
    """One process with the batch of both ranks."""
    shutil.copytree(survived[0] / "killed", tmp_path / "killed")
    options = OFTEN | {"max_epochs": 3, "device": "cpu", "dataset_dir": str(survived[0] / "data")}
    with pytest.raises(RuntimeError) as refused:
        run(workflow(tmp_path, "killed", "train.json", **options))
    assert "was made with batch_size = 8, this run has 4:" in str(unwrapped(refused.value))
    trained = run(workflow(tmp_path, "killed", "train.json", **options, batch_size=8))
    assert trained.get_parsed_content("train#trainer").state.iteration == 3 * 6
    assert json.loads((tmp_path / "killed" / "disentangler.json").read_text())["images_seen"] == 3 * 48


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
