"""A MONAI Deploy application: a folder of DICOM radiographs in, Secondary Captures of nobody out.

    python -m monai_anon.integrations.deploy -i IN -o OUT -m bundles/chest/models/model.ts

    loader -> series selection -> radiographs -> inference -> gate and writer

Loader, selection and inference are the SDK's (monai-deploy-app-sdk 4.0.0), the file's own pre- and postprocessing
included; reading, gate and writer are those of `monai-anon anonymize` (`script_release`). The SDK's logs quote UIDs and
descriptions, and its exceptions whatever a file holds: both are kept quiet, and images have numbers. docs/deploy.md.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pydicom
import torch

os.environ.setdefault("HOLOSCAN_LOG_LEVEL", "ERROR")


def _find_cuda() -> None:
    """The SDK links against CUDA's runtime on a CPU, too; pip's package puts it where no loader looks."""
    found = find_spec("nvidia")
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        for library in sorted(Path(folder).glob("cu13/lib/libcudart.so.13")):
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


_find_cuda()

from monai.deploy.conditions import BooleanCondition, CountCondition  # noqa: E402
from monai.deploy.core import AppContext, Application, ConditionType, Image, IOType, Operator, OperatorSpec  # noqa: E402
from monai.deploy.core.domain.dicom_series import DICOMSeries  # noqa: E402
from monai.deploy.core.domain.dicom_study import DICOMStudy  # noqa: E402
from monai.deploy.operators.dicom_data_loader_operator import DICOMDataLoaderOperator  # noqa: E402
from monai.deploy.operators.dicom_series_selector_operator import DICOMSeriesSelectorOperator  # noqa: E402
from monai.deploy.operators.monai_bundle_inference_operator import (  # noqa: E402
    BundleConfigNames,
    IOMapping,
    MonaiBundleInferenceOperator,
)

from monai_anon.integrations.script_release import (  # noqa: E402
    DeployError,
    Item,
    Releaser,
    open_script,
    script_file,
    settings_here,
)
from monai_anon.keys import KeyFileError  # noqa: E402

RULES = json.dumps({"selections": [{"name": "radiographs", "conditions": {"Modality": "^(CR|DX)$"}}]})
"""Which series are taken: computed and digital radiography."""


class RadiographLoader(DICOMDataLoaderOperator):
    """The SDK's loader without what it does for volumes: it leaves out images that claim one position in a series, or a
    position or spacing that is none, without a word, and keeps all pixels in memory.
    """

    def __init__(self, fragment: Any, *args: Any, **settings: Any):
        self.left_out = 0
        super().__init__(fragment, *args, must_load=False, **settings)

    def _load_data(self, files: Sequence[str]) -> Any:
        studies: dict[str, DICOMStudy] = {}
        series: dict[tuple[str, str], DICOMSeries] = {}
        for file in sorted(files):
            try:
                header = pydicom.dcmread(file, stop_before_pixels=True)
                uids = str(header.StudyInstanceUID), str(header.SeriesInstanceUID)
                if uids[0] not in studies:
                    studies[uids[0]] = DICOMStudy(uids[0])
                if uids not in series:
                    series[uids] = DICOMSeries(uids[1])
                    series[uids].Modality = str(header.Modality)  # all that the selection asks for
                    studies[uids[0]].add_series(series[uids])
                series[uids].add_sop_instance(header)
            except Exception:  # whatever a broken file makes pydicom raise: it is counted, not quoted
                self.left_out += 1
        return list(studies.values())


class SingleFrames(Operator):
    """Series to single images, one a tick: what the SDK's own operator for volumes cannot do."""

    def __init__(self, fragment: Any, *args: Any, releaser: Releaser, **settings: Any):
        self.releaser, self.waiting, self.number = releaser, list[Path](), 0
        self.started = False
        self.more = BooleanCondition(fragment, name="more", enable_tick=True)
        super().__init__(fragment, self.more, *args, **settings)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("study_selected_series_list").condition(ConditionType.NONE)
        spec.output("image")
        spec.output("item")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        if not self.started:
            studies = op_input.receive("study_selected_series_list")
            if studies is None:
                return
            self.started = True
            self.waiting = sorted({
                Path(instance.get_native_sop_instance().filename)
                for study in studies
                for selected in study.selected_series
                for instance in selected.series.get_sop_instances()
            })  # fmt: skip
        while self.waiting:
            self.number += 1
            item = self.releaser.read(self.waiting.pop(0), self.number)
            if item is not None:
                picture = Image(item.picture(), {"noise": self.releaser.noise(item)})
                op_output.emit(picture, "image")
                op_output.emit((self.number, item), "item")
                return
        self.more.disable_tick()


class SeededInference(MonaiBundleInferenceOperator):
    """The SDK's inference with noise that belongs to the image: the network's own generator has a seed of 32 bits."""

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        try:
            super().compute(op_input, op_output, context)
        except Exception as error:  # one image does not take the others along; its message may quote
            op_output.emit(error, "pred")

    def pre_process(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        self._noise: torch.Tensor = torch.as_tensor(data["image"].meta["noise"])
        return super().pre_process(data, *args, **kwargs)

    def predict(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        network, noise = self._model_network, self._noise[None].to(data.device)
        return self._inferer(data.as_tensor(), lambda image: network(image, noise))


class GatedWriter(Operator):
    """What the gate lets pass, as Secondary Captures."""

    def __init__(self, fragment: Any, *args: Any, releaser: Releaser, **settings: Any):
        self.releaser = releaser
        super().__init__(fragment, *args, **settings)

    def setup(self, spec: OperatorSpec) -> None:
        spec.input("pred")
        spec.input("item")

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        picture: Any = op_input.receive("pred")
        received: tuple[int, Item] = op_input.receive("item")
        number, item = received
        try:
            if isinstance(picture, Exception):
                raise picture
            self.releaser.release(item, picture.asnumpy().T, number)  # the SDK has columns first
        except Exception as error:  # one image does not take the others along, and is not written
            self.releaser.failed(number, error)


class AnonymisingApp(Application):
    """The application; `releaser` has the counts after `run`."""

    def __init__(self, context: AppContext, releaser: Releaser, file: Path):
        self.context, self.releaser, self.file = context, releaser, file
        super().__init__()

    def compose(self) -> None:
        source = self.releaser.source
        self.loader = RadiographLoader(self, CountCondition(self, 1), input_folder=source, name="loader")
        selector = DICOMSeriesSelectorOperator(self, rules=RULES, all_matched=True, name="selection")
        frames = SingleFrames(self, releaser=self.releaser, name="radiographs")
        inference = SeededInference(
            self,
            app_context=self.context,
            input_mapping=[IOMapping("image", Image, IOType.IN_MEMORY)],
            output_mapping=[IOMapping("pred", Image, IOType.IN_MEMORY)],
            bundle_path=self.file,
            bundle_config_names=BundleConfigNames(config_names=["inference"]),
            name="inference",
        )
        writer = GatedWriter(self, releaser=self.releaser, name="gate and writer")
        self.add_flow(self.loader, selector, {("dicom_study_list", "dicom_study_list")})
        self.add_flow(selector, frames, {("study_selected_series_list", "study_selected_series_list")})
        self.add_flow(frames, inference, {("image", "image")})
        self.add_flow(frames, writer, {("item", "item")})
        self.add_flow(inference, writer, {("pred", "pred")})


def main(words: Sequence[str] | None = None) -> int:
    """Run the application on the SDK's options `-i -o -m`; 0 done, 1 done in part, 2 nothing done, with the reason."""
    logging.disable(logging.WARNING)  # below it the SDK quotes headers
    context = Application.init_app_context(list(words if words is not None else sys.argv))
    try:
        settings = settings_here()
        file = script_file(context.model_path)
        script = open_script(file)
        releaser = Releaser(script, settings, Path(context.input_path), Path(context.output_path))
    except (DeployError, KeyFileError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    if releaser.gate is None:
        print("no privacy gate: images are written that nothing was compared with", file=sys.stderr)
    app = AnonymisingApp(context, releaser, file)
    try:
        app.run()
    except Exception as error:  # the SDK's, which may quote a header
        print(f"Error: the application stopped ({type(error).__name__})", file=sys.stderr)
        return 1
    for problem in releaser.problems:
        print(f"not anonymised: {problem}", file=sys.stderr)
    if app.loader.left_out:
        print(f"left out: {app.loader.left_out} file(s) that are no DICOM images of a series", file=sys.stderr)
    print(f"wrote {releaser.written} of {releaser.written + len(releaser.problems)} radiographs to {releaser.output}")
    return 1 if releaser.problems or not releaser.written else 0


if __name__ == "__main__":
    sys.exit(main())
