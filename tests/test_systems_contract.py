"""What every `System` of `BASELINES` keeps, and every overlay of `bundles/chest/configs/systems`: nothing to add for a
new one.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser
from tiny import LATENT_SIZES, SIZE, tiny_cohort

from monai_anon.baselines import BASELINES
from monai_anon.baselines.system import Guides, IdentityGuide, Setting, System, load_system, run_step, train_system
from monai_anon.cohort import Cohort
from monai_anon.evaluation.subjects import subject_of
from monai_anon.networks import Recogniser
from monai_anon.optimisation import Optimisation
from monai_anon.pairs import PairLoader

CONFIGS = Path(__file__).resolve().parent.parent / "bundles" / "chest" / "configs"
OVERLAYS = {path.stem: path for path in sorted((CONFIGS / "systems").glob("*.json"))}
SYSTEMS = {name: made for name, made in BASELINES.items() if issubclass(made, System)}
NARROW: dict[str, Any] = {
    "image_size": SIZE,
    "latent_sizes": list(LATENT_SIZES),
    "encoder_widths": [8, 16],
    "decoder_widths": [16, 8],
    "guide_widths": [8, 8, 8],
}
PATIENTS = 40
FEW: dict[str, dict[str, Any]] = {"ours": {"system#patients_a_prototype": 1}}
"""What a system needs of its own to do with so few patients."""

each_system = pytest.mark.parametrize("name", sorted(SYSTEMS))


def configured(name: str, channels: int = 1) -> System:
    """A system as its overlay makes it, narrow."""
    parser = ConfigParser()
    parser.read_config([CONFIGS / "compare.json", OVERLAYS[name]])
    parser.update({**NARROW, "channels": channels, **FEW.get(name, {})})
    torch.manual_seed(0)
    return parser.get_parsed_content("system")


def setting(channels: int = 1, batches: int = 4) -> Setting:
    """A cohort of noise and untrained guides: the contract does not depend on what they know."""
    gray = tiny_cohort(3 * PATIENTS, PATIENTS)
    images = gray.images.repeat(1, channels, 1, 1)
    cohort = Cohort(images, gray.patient, gray.finding, gray.entries, gray.classes, gray.name)
    torch.manual_seed(1)
    guides = Guides(Recogniser(channels, 2, NARROW["guide_widths"]), IdentityGuide(channels, PATIENTS, (8, 8)))
    for guide in (guides.finding, guides.identity):
        guide.eval().requires_grad_(False)
    return Setting(cohort, guides, Optimisation(lr=0.01, ema=0.5), batches, 4)


def concluded(name: str, channels: int = 1) -> System:
    """A system that is ready to release, with the weights that it began with."""
    system, given = configured(name, channels), setting(channels)
    system.begin(given)
    system.eval().requires_grad_(False)
    system.conclude(given)
    return system.eval()


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# ---- configs ----


def test_every_system_has_an_overlay_of_its_name_and_every_overlay_a_system() -> None:
    assert set(OVERLAYS) == set(SYSTEMS)
    assert len(SYSTEMS) >= 20


@each_system
def test_an_overlay_is_short_formatted_and_makes_the_system_of_its_name(name: str) -> None:
    text = OVERLAYS[name].read_text()
    assert len(text.splitlines()) <= 20, f"{OVERLAYS[name]} has {len(text.splitlines())} lines; 20 are the most"
    assert text == json.dumps(json.loads(text), indent=4, ensure_ascii=False) + "\n"
    assert set(json.loads(text)) == {"_desc_", "system"}
    assert type(configured(name)) is SYSTEMS[name]


@each_system
def test_a_system_can_be_made_without_arguments(name: str) -> None:
    assert isinstance(SYSTEMS[name](), SYSTEMS[name])


# ---- releases ----


@each_system
@pytest.mark.parametrize("channels", [1, 3])
def test_a_release_has_its_originals_shape_and_range_and_only_itself_and_the_seed_in_it(
    name: str, channels: int
) -> None:
    image = torch.rand(3, channels, SIZE, SIZE) * 2 - 1
    before, anonymise = image.clone(), subject_of(name, concluded(name, channels)).anonymise
    released = anonymise(image, seeded())
    assert released.shape == image.shape and released.dtype == image.dtype
    assert torch.isfinite(released).all() and released.abs().max() <= 1
    assert torch.equal(image, before), "it changed its input"
    assert torch.equal(anonymise(image, seeded()), released), "other pixels under the same seed"
    for row in range(len(image)):
        others = torch.where(torch.arange(len(image))[:, None, None, None] == row, image, image.flip(0) * 0.5)
        with_others = anonymise(others, seeded())[row]
        assert torch.allclose(with_others, released[row], atol=1e-6), "other pixels among other images"


# ---- training ----


class Killed(RuntimeError):
    pass


class Stopping:
    """A step that is killed in its third iteration."""

    def __init__(self, step: Any):
        self.step, self.seen = step, 0

    def __call__(self, batch: Any, progress: float) -> Any:
        self.seen += 1
        if self.seen == 3:
            raise Killed
        return self.step(batch, progress)

    def parts(self) -> dict[str, Any]:
        return self.step.parts()


@each_system
def test_a_stopped_training_goes_on_to_the_same_system_and_guides_stay_as_they_are(name: str, tmp_path: Path) -> None:
    given, start = setting(), configured(name)
    guides = [tensors(given.guides.finding), tensors(given.guides.identity)]
    whole = train_system(copy.deepcopy(start), given, tmp_path / "whole", name)
    assert not equal(tensors(whole), tensors(start)), "it learned nothing"
    stopped = copy.deepcopy(start)
    torch.manual_seed(given.seed)
    step = stopped.begin(given)
    if step is not None:  # of some, `conclude` is all that they do
        with pytest.raises(Killed):
            run_step(Stopping(step), given, tmp_path / "stopped", name, every=2)
        assert (tmp_path / "stopped" / "checkpoint.pt").exists()
    gone_on = train_system(copy.deepcopy(start), given, tmp_path / "stopped", name)
    assert equal(tensors(gone_on), tensors(whole))
    assert equal(guides[0], tensors(given.guides.finding)) and equal(guides[1], tensors(given.guides.identity))


@each_system
def test_the_terms_of_a_step_are_finite_scalars_without_a_graph(name: str) -> None:
    given, system = setting(), configured(name)
    step = system.begin(given)
    if step is None:
        return
    loader = PairLoader(given.cohort, given.batch_size, given.seed)
    for iteration, progress in enumerate((0.0, 0.5, 1.0)):
        terms = step(loader.batch(iteration), progress)
        assert terms and all(term.ndim == 0 and not term.requires_grad for term in terms.values())
        assert all(bool(torch.isfinite(term)) for term in terms.values()), terms


# ---- files ----


@each_system
def test_a_file_has_all_that_a_release_needs_and_nothing_of_the_identity_guide(name: str, tmp_path: Path) -> None:
    system, given = concluded(name), setting()
    state = system.state_dict()
    assert not [key for key in state if "templates" in key]
    identity = given.guides.identity.state_dict()["templates"]
    assert not [
        key for key, tensor in state.items() if tensor.shape == identity.shape and torch.equal(tensor, identity)
    ]
    torch.save(state, tmp_path / "system.pt")
    blank = configured(name)
    for parameter in blank.parameters():
        parameter.data.fill_(0.5)  # what the file does not bring would show
    again = load_system(blank, tmp_path / "system.pt").eval()
    image = torch.rand(2, 1, SIZE, SIZE) * 2 - 1
    released = [subject_of(name, module).anonymise(image, seeded()) for module in (system, again)]
    assert torch.equal(*released)


# ---- what is proved ----


def test_what_is_proved_is_said_and_nothing_else_is() -> None:
    said = {name: getattr(concluded(name), "proved", "") for name in SYSTEMS}
    assert {name for name, bound in said.items() if bound} == {"k-same-select", "k-same-m", "ours"}
    assert all(bound.endswith(" bits an image") for bound in said.values() if bound)
    assert BASELINES["dp-pix"]().proved == "epsilon 1 between images that differ in 16 pixels"
