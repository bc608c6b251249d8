"""What the report's tables show: which metric stands in which column, and what each attacker has and does."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from monai_anon.evaluation.tables import CODES


@dataclasses.dataclass(frozen=True)
class Group:
    """Metrics of one table.

    Args:
        pattern: regular expression of whole metrics; its group ``figure`` names the column, ``case`` (if any) the line.
        figures: column titles by ``figure``, in order.
        case: title of the column of cases.
        cases: what a case is called, by the text that ``case`` found.
        experiments: the paper's Table 2 experiments are shown as well.
        note: stands below the table.
    """

    caption: str
    pattern: str
    figures: dict[str, str]
    case: str = ""
    cases: dict[str, str] = dataclasses.field(default_factory=dict)
    experiments: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """Tables that answer one question; ``sentence`` says it plainly, and ``closed`` what a closed set changes."""

    key: str
    title: str
    sentence: str
    groups: Sequence[Group]
    closed: str = ""


PERSON = {
    "auc": "AUC",
    "eer": "EER",
    "tar_at_far_10": "TAR at FAR 10 %",
    "tar_at_far_1": "TAR at FAR 1 %",
    "rank_1": "rank-1",
}
_PERSON = "|".join(PERSON)
NAMED = {
    "accuracy": "rank-1",
    "confidence": "largest confidence",
    "confidence_ratio": "times chance",
    "raw_confidence": "not calibrated",
    "true_confidence": "confidence in the right person",
    "entropy": "entropy, of the largest",
}
PAIRINGS = {
    "released-real": "released to real",
    "released-released": "released to released",
    "mixed": "mixed",
    "lowest-bits": "released to real, with the lowest bits",
    "": "the strongest",
}
MEMBERSHIPS = {
    "nearest": "nearest training patient",
    "black_box": "black box",
    "reconstruction": "model file: reconstruction",
    "pairs": "model file: two images of a person",
    "vae": "model file: the VAE's loss",
    "identity_samples": "model file: nearest sampled identity",
    "identity_nearest": "sampled identities to training patients",
    "prior": "model file: the channel's tables",
}

ATTACKS = (
    Section(
        "P1",
        "P1: static attacker",
        "The attacker has real images of known patients and a recogniser trained on real images only; they compare "
        "each released image with another real image of the patient.",
        [Group("Static attack", rf"static_(?P<figure>{_PERSON})", PERSON)],
        "The recogniser was trained on other images of the very people that it is asked about.",
    ),
    Section(
        "P2",
        "P2: adaptive attacker",
        "The attacker has the anonymizer, too: they release images of people they know, retrain the recogniser on "
        "pairs with those, and then try it on people they have never seen.",
        [
            Group(
                "Adaptive attack, by the pairs it was trained on",
                rf"adaptive_((?P<case>released-real|released-released|mixed|lowest-bits)_)?(?P<figure>{_PERSON})",
                PERSON,
                "pairs",
                PAIRINGS,
            )
        ],
        "They try it on the very people whom they know, by other images: a stronger attacker.",
    ),
    Section(
        "P3",
        "P3: linkage in a gallery",
        "The attacker has one real image of each of N patients and asks which of them a released image shows.",
        [
            Group(
                "Linkage among all test patients",
                r"linkage_(?P<figure>rank_1|rank_5|map_at_r|chance)",
                {"rank_1": "rank-1", "rank_5": "rank-5", "map_at_r": "mAP@R", "chance": "rank-1 by chance"},
            ),
            Group(
                "Linkage by size of the gallery",
                r"linkage_(?P<case>\d+)_(?P<figure>rank_1|rank_5|chance)",
                {"rank_1": "rank-1", "rank_5": "rank-5", "chance": "rank-1 by chance"},
                "patients in the gallery",
            ),
        ],
        "The recogniser knows all of them; strangers from the training part are only those who are no test people.",
    ),
    Section(
        "P4",
        "P4: inversion",
        "The attacker trains a network to turn released images of people they know back into the originals, and "
        "compares what it restores with real images.",
        [Group("Inversion", rf"inversion_(?P<figure>{_PERSON}|ssim)", PERSON | {"ssim": "SSIM of the restored"})],
        "The people whom they know are those who are to be restored, by other images.",
    ),
    Section(
        "P5",
        "P5: membership",
        "The attacker asks whether a person's images were among those that the anonymizer was trained on, and whether "
        "releases look like training patients (above 0.5; below, they only look unlike real images). With the model "
        "file they also ask what its networks and tables remember.",
        [
            Group(
                "Membership inference",
                rf"membership_(?P<case>{'|'.join(MEMBERSHIPS)})_(?P<figure>auc|tpr_at_fpr_1)",
                {"auc": "AUC", "tpr_at_fpr_1": "TPR at FPR 1 %"},
                "by",
                MEMBERSHIPS,
            )
        ],
        "Everybody is in the training part, so the attacker asks which images of the same people were trained on. "
        "Whether releases or sampled identities look like training people cannot be asked: there are no strangers.",
    ),
    Section(
        "P6",
        "P6: repeated release",
        "The attacker collects several releases of one image, or of several images of one patient, and averages what "
        "they tell.",
        [
            Group("Releases of one image", r"repeated_(?P<case>\d+)_(?P<figure>auc|rank_1)", PERSON, "releases"),
            Group(
                "Released images of one patient",
                r"repeated_patient_(?P<case>\d+)_(?P<figure>auc)",
                PERSON,
                "images",
            ),
        ],
        "They have learned from releases of the very people, by other images.",
    ),
    Section(
        "P7",
        "P7: attributes",
        "The attacker reads attributes such as sex or age from released images; the line of the reference says how "
        "well that works on the untouched ones. The view is a property of the image, not of the person.",
        [Group("Attribute inference", r"attribute_((?P<case>\S+)_)?(?P<figure>auc)", PERSON, "attribute")],
        "They have learned from the very people, so an attribute may be read by recognising the person.",
    ),
    Section(
        "P8",
        "P8: latent probes",
        "Somebody with the network's latents predicts patient and finding from each of the three: the identity latent "
        "should know the patient, the medical one the finding, and a latent that passes should not know the patient. "
        "Which do not pass is said below.",
        [
            Group(
                "Probes on the three latents",
                r"probe_(?P<case>identity|medical|residual)_(?P<figure>patient|finding)_auc",
                {"patient": "AUC of the patient", "finding": "AUC of the finding"},
                "latent",
            )
        ],
        "The probes have learned from the very people, so the finding, too, may be told by the person.",
    ),
    Section(
        "P9",
        "P9: codes known",
        "Where a code passes and nothing else: an oracle knows every image's code without error, and how often two "
        "images of a patient have which codes. With the very image that was released nobody can do better.",
        [
            Group("By another image of the patient", rf"oracle_(?P<figure>{_PERSON})", PERSON),
            Group(
                "By the very image that was released, among one image of each test patient",
                r"oracle_image_(?P<figure>rank_1|chance)",
                {"rank_1": "rank-1", "chance": "bound: K / N"},
            ),
        ],
    ),
    Section(
        "P10",
        "P10: identification in a closed set",
        "The attacker trains a classifier on real images of all training people, who here are the test people, too, "
        "and asks it whom a released image shows. The largest confidence is the paper's figure: 1/N of N people is "
        "ideal, a ratio to chance of 1. It is calibrated on untouched images, but released ones are of another kind, "
        "where a network may be sure of the wrong person: the accuracy tells who is found, and its chance is known. "
        "Who has the anonymizer can do better, by learning from releases: the second table.",
        [
            Group(
                "Identification among the training people",
                r"identification_(?!adapted_)(?P<figure>\w+)",
                {"chance": "rank-1 by chance"} | NAMED,
            ),
            Group(
                "The same by a network that has learnt releases, too, and is calibrated on releases",
                r"identification_adapted_(?P<figure>\w+)",
                NAMED,
            ),
        ],
    ),
)

CONTENT = (
    Section(
        "channel",
        "What passes: bits against what is kept",
        "Instead of the medical latent the number of one of K prototypes may pass, a code; identity and residual are "
        "drawn. On average a release then says at most log2 K bits of its original, whoever looks. Below, what the "
        "medical judge still reads of releases under codes of every size, with the same networks and the same draws.",
        [
            Group(
                "The bound of what was measured",
                r"channel_(?P<figure>bits|patients|epsilon)",
                CODES | {"epsilon": "epsilon"},
            ),
            Group(
                "What is kept under a code of K prototypes",
                r"code_(?P<case>\d+)_(?P<figure>bits|patients|(finding|side|severity)_\w+)",
                CODES,
                "K",
                note="The code as it is, without randomised response. A level may have fewer prototypes than K; the "
                "patients are those of the training part.",
            ),
        ],
    ),
    Section(
        "content",
        "Medical content",
        "What the medical judge, trained on real images, reads from released ones, and what a classifier learns from "
        "released images for use on real ones.",
        [
            Group(
                "Finding, side and severity",
                r"(?P<figure>judge_(finding|side|severity)_\w+|trained_on_released_\w+)",
                {
                    "judge_finding_auc": "finding AUC",
                    "judge_finding_accuracy": "finding accuracy",
                    "judge_finding_agreement": "agreement with the original",
                    "judge_side_accuracy": "side",
                    "judge_severity_correlation": "severity corr.",
                    "judge_finding_accuracy_change": "change of accuracy",
                    "trained_on_released_finding_auc": "trained on released: finding AUC",
                    "trained_on_released_finding_accuracy": "trained on released: accuracy",
                },
            )
        ],
        "A judge has seen other images of the very people and may know the finding by the person, where it does not "
        "change within one: the untouched images' figures are then too good, and releases lose that part by right.",
    ),
    Section(
        "realism",
        "Realism and explanation",
        "How near released images are to their originals and to real images as a whole, and how well they serve as "
        "explanations.",
        [
            Group(
                "Similarity and realism",
                r"(?P<figure>(ssim|psnr)_\w+|fid|kid|precision|recall|density|coverage)",
                {
                    "ssim_original": "SSIM",
                    "psnr_original": "PSNR",
                    "ssim_twice": "SSIM twice",
                    "fid": "FID",
                    "kid": "KID",
                },
                experiments=True,
            ),
            Group(
                "Retrieval and counterfactuals",
                r"(?P<figure>retrieval_\w+|outside_evidence_\w+)",
                {
                    "retrieval_precision_at_10": "precision@10",
                    "retrieval_ndcg_at_10": "nDCG@10",
                    "retrieval_own_precision_at_10": "own latent: precision@10",
                    "retrieval_own_ndcg_at_10": "own latent: nDCG@10",
                    "retrieval_own_before_precision_at_10": "own latent, before: precision@10",
                    "retrieval_own_before_ndcg_at_10": "own latent, before: nDCG@10",
                    "outside_evidence_share": "share changed outside the evidence",
                    "outside_evidence_area": "the same of an even change",
                },
                experiments=True,
            ),
        ],
        "Released images are compared with real ones of the same people, so figures are lower than of people apart. "
        "Retrieval leaves a person's own images out.",
    ),
    Section(
        "factors",
        "Ground truth: exact factors",
        "On a generated cohort every factor is known. Identity factors should not be readable from released images "
        "(R² near 0), medical ones should (R² near 1), and residual ones only where the residual latent passes.",
        [
            Group(
                "Groups of factors, read from released images",
                r"factors_(?P<case>identity|medical|residual)_(?P<figure>r2)",
                {"r2": "R²"},
                "factors",
            ),
            Group(
                "Single factors, read from released images",
                r"factor_(?P<case>\S+)_(?P<figure>r2)",
                {"r2": "R²"},
                "factor",
            ),
            Group("Swap consistency", r"(?P<figure>swap)_(?P<case>\S+)", {"swap": "agreement"}, "factor"),
            Group(
                "Disentanglement of the latent blocks",
                r"blocks_(?P<figure>\w+)",
                {
                    "disentanglement": "disentanglement",
                    "completeness": "completeness",
                    "informativeness": "informativeness",
                    "mig": "information gap (MIG)",
                    "sap": "predictability gap (SAP)",
                },
                experiments=True,
                note="After DCI, MIG and SAP, but over the three latents as blocks and in R²: not to be compared with "
                "the literature's scores, which are of single dimensions.",
            ),
            Group(
                "Factors read from each latent",
                r"block_(?P<case>[^_]+)_(?P<figure>[^_]+)_r2",
                {"identity": "identity, R²", "medical": "medical, R²", "residual": "residual, R²"},
                "latent",
                experiments=True,
            ),
        ],
        "Regressors have learned from the very people: a factor that does not change within a person may be read by "
        "recognising the person, from the identity latent above all.",
    ),
)
