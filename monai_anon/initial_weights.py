"""The weights that a training starts from: those of a file, of the same networks or of smaller ones."""

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from monai_anon.model_files import read_tensors

logger = logging.getLogger("monai_anon")
TEMPLATES = "identity_classifier."
"""How the names of a disentangler's weights begin that have a row for each training patient."""
NEW_IN_A_LARGER = ("encoder.stem.", "decoder.final_norm.", "decoder.head.")


def initialised(model: nn.Module, path: str | None) -> nn.Module:
    """`model` with the weights of a file (tensors only), to go on from a trained one; None leaves it as it is.

    The file is a stage's own (`disentangler.pt`), or a `model.pt` of both stages, of which the first is taken. It may
    be of networks for images of half the side, or a quarter (`grown`). An identity classifier starts anew: its classes
    are the people of the cohort that it was trained on.

    Raises:
        ValueError: the file is missing or does not fit; names it.
    """
    if path is None:
        return model
    try:
        weights = read_tensors(path)
        stage = "disentangler."
        first = {name.removeprefix(stage): tensor for name, tensor in weights.items() if name.startswith(stage)}
        kept = {name: tensor for name, tensor in (first or weights).items() if not name.startswith(TEMPLATES)}
        own = model.state_dict()
        classes = {name: tensor for name, tensor in own.items() if name.startswith(TEMPLATES)}
        model.load_state_dict({**grown(kept, own), **classes})
    except (OSError, RuntimeError, AttributeError, ValueError) as error:
        raise ValueError(f"initial_weights {path} cannot be used for these networks: {error}") from error
    return model


def grown(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of a `Disentangler` for networks with more halvings and doublings than theirs, whose own weights fill
    what is new: the layers next to the image (progressive growing, Karras et al. 2018). Equal networks take them as
    they are.

    The encoder's new blocks come first, the decoder's last; where `widths` are those of before with new ones at the
    image's end, all other layers have the same shapes and see maps of the same side.
    """
    blocks = [
        {int(name.split(".")[2]) for name in names if name.startswith("encoder.blocks.")} for names in (own, weights)
    ]
    more = len(blocks[0]) - len(blocks[1])
    if more <= 0 or not blocks[1]:
        return weights
    taken = dict(own)
    for name, tensor in weights.items():
        parts = name.split(".")
        if name.startswith("encoder.blocks."):
            name = ".".join([*parts[:2], str(int(parts[2]) + more), *parts[3:]])
        if not name.startswith(NEW_IN_A_LARGER):
            taken[name] = tensor
    logger.info("%d halvings more than in the weights: the layers next to the image are new", more // 2)
    return taken
