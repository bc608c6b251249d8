"""What is kept: medical content (M1-M3), realism (R1, R2), explanation (E1, E2), exact factors of phantoms, and the
channel's bound with what codes of every size keep.
"""

from monai_anon.evaluation.contents import blocks, channel, content, counterfactual, factors, realism, retrieval
from monai_anon.evaluation.scene import Measure

CONTENT: dict[str, Measure] = {
    "content": content.content,
    "realism": realism.realism,
    "retrieval": retrieval.retrieval,
    "counterfactual": counterfactual.counterfactual,
    "factors": factors.factors,
    "blocks": blocks.block_table,
    "channel": channel.channel,
}
