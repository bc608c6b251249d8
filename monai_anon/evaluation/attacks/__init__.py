"""Attacks on released images, P1 to P10: each a function of a subject and a scene that returns rows.

Every attacker has the same budget (`Scene.steps` batches) for every subject and knows the anonymizer: it may release
images of the training patients and learn from them. Figures are of the test patients, whom it has never seen, or in a
closed set by other images only. An AUC below 0.5 can be turned round and tells as much as one above.
"""

from monai_anon.evaluation.attacks import (
    adaptive,
    attributes,
    codes,
    identification,
    inversion,
    membership,
    probes,
    repeated,
    static,
)
from monai_anon.evaluation.scene import Measure

ATTACKS: dict[str, Measure] = {
    "static": static.static,
    "adaptive": adaptive.adaptive,
    "linkage": static.linkage,
    "inversion": inversion.inversion,
    "membership": membership.membership,
    "repeated": repeated.repeated,
    "attributes": attributes.attributes,
    "probes": probes.probes,
    "codes": codes.codes,
    "identification": identification.identification,
}
