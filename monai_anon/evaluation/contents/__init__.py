"""What is kept: medical content (M1-M3), realism (R1, R2), explanation (E1, E2), and exact factors of phantoms."""

from monai_anon.evaluation.contents import blocks, content, counterfactual, factors, realism, retrieval
from monai_anon.evaluation.scene import Measure

CONTENT: dict[str, Measure] = {
    "content": content.content,
    "realism": realism.realism,
    "retrieval": retrieval.retrieval,
    "counterfactual": counterfactual.counterfactual,
    "factors": factors.factors,
    "blocks": blocks.block_table,
}
