"""How many images and patients the three parts of a generated cohort have, from what a person types."""

from __future__ import annotations

from collections.abc import Callable

from monai_anon.manifest import PARTS
from monai_anon.phantoms.chest_factors import MAX_IMAGES, MIN_IMAGES

Sizes = tuple[int, int, int]

# A part that is scaled down keeps at least so many, so that pairs and both findings exist in it.
LEAST_IMAGES, LEAST_PATIENTS = 8, 3


def part_sizes(
    images: str | None,
    patients: str | None,
    default: tuple[Sizes, Sizes],
    bounds: tuple[int, int] = (MIN_IMAGES, MAX_IMAGES),
    shared: bool = False,
) -> tuple[Sizes, Sizes]:
    """Images and patients of training, validation and test.

    `images` and `patients` are three whole numbers, "6000,200,300", or one: the training part's, and the other parts
    keep their proportion to it. Where only one of the two is given, the other keeps its proportion too.

    Args:
        default: images and patients that stand where nothing is given, and whose proportions count.
        bounds: the fewest and the most images that a patient can have in a part.
        shared: every part has the same patients, so their number is that of the part that allows the fewest.

    Raises:
        ValueError: text that is not one or three whole numbers.
    """
    given_images = _parsed(images, "images", default[0], LEAST_IMAGES)
    given_patients = _parsed(patients, "patients", default[1], LEAST_PATIENTS)
    if given_images and not given_patients:
        people = _each(_patients_of, given_images, default, bounds)
        fewest = min((count for count in people if count), default=0)
        return given_images, (fewest, fewest, fewest) if shared else people
    if given_patients and not given_images:
        return _each(_images_of, given_patients, default, bounds), given_patients
    return given_images or default[0], given_patients or default[1]


def _patients_of(images: int, usual_images: int, usual_patients: int, bounds: tuple[int, int]) -> int:
    """As many patients as `images` usually come from, within what a phantom can make."""
    usual = round(images * usual_patients / usual_images)
    return min(max(usual, -(-images // bounds[1])), images // bounds[0])


def _images_of(patients: int, usual_images: int, usual_patients: int, bounds: tuple[int, int]) -> int:
    """As many images as `patients` usually have, within what a phantom can make."""
    return min(max(round(patients * usual_images / usual_patients), bounds[0] * patients), bounds[1] * patients)


def _each(
    function: Callable[[int, int, int, tuple[int, int]], int],
    counts: Sizes,
    default: tuple[Sizes, Sizes],
    bounds: tuple[int, int],
) -> Sizes:
    """`function` of each part's count and usual numbers."""
    training, validation, test = (function(*numbers, bounds) for numbers in zip(counts, *default, strict=True))
    return training, validation, test


def _parsed(text: str | None, name: str, default: Sizes, least: int) -> Sizes | None:
    """Three numbers from text with one or three; None stays None."""
    if text is None:
        return None
    words = text.split(",")
    if len(words) not in (1, len(PARTS)) or not all(word.strip().isdecimal() for word in words):
        raise ValueError(
            f"--{name} {text!r}: give three whole numbers, {','.join(PARTS)}, as in --{name} "
            f"{','.join(map(str, default))}; or one, of the training part"
        )
    numbers = [int(word) for word in words]
    if len(numbers) == 1:
        numbers += [max(least, round(usual * numbers[0] / default[0])) for usual in default[1:]]
    training, validation, test = numbers
    return training, validation, test
