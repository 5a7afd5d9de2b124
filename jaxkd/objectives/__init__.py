"""Terms: losses with their own projections, memories, traced temperatures and weights; and weighted sums of terms."""

from jaxkd.objectives.cross_layer import ab, ofd, review, semckd
from jaxkd.objectives.detection import (
    cross_head,
    edge_distributions,
    labelled_boxes,
    predictions,
    score_weighted_neck,
)
from jaxkd.objectives.hyper import Held, Number, hold
from jaxkd.objectives.layers import last_layers, layer_names, uniform_layers
from jaxkd.objectives.maps import cat_kd, fgd, ft, mgd, paraphrase, srrl, vid
from jaxkd.objectives.margin import margin_softmax
from jaxkd.objectives.members import learned_teachers, of_member
from jaxkd.objectives.memories import cirkd_memory, crd, info_nce_queue, queue_similarity
from jaxkd.objectives.networks import Network
from jaxkd.objectives.paths import features_of, pick
from jaxkd.objectives.projections import connector, linear, mlp, regressor
from jaxkd.objectives.ranking import distillation_experts, rrd
from jaxkd.objectives.schedules import cosine_ramp, sigmoid_ramp, switched, warm_decay
from jaxkd.objectives.temperature import curriculum_temperature
from jaxkd.objectives.terms import (
    Weigh,
    from_features,
    from_labels,
    from_logits,
    from_outputs,
    stateful,
    trained,
)
from jaxkd.objectives.tokens import from_hidden, pkd, tinybert, vitkd
from jaxkd.objectives.vectors import srd, uskd
from jaxkd.objectives.weighting import (
    class_weight,
    inverse_frequency,
    student_doubt,
    teacher_certainty,
    teacher_confidence,
    uncertainty_weighted,
    weighted,
    wsld_weight,
)

__all__ = [
    "Held",
    "Network",
    "Number",
    "Weigh",
    "ab",
    "cat_kd",
    "cirkd_memory",
    "class_weight",
    "connector",
    "cosine_ramp",
    "crd",
    "cross_head",
    "curriculum_temperature",
    "distillation_experts",
    "edge_distributions",
    "features_of",
    "fgd",
    "from_features",
    "from_hidden",
    "from_labels",
    "from_logits",
    "from_outputs",
    "ft",
    "hold",
    "info_nce_queue",
    "inverse_frequency",
    "labelled_boxes",
    "last_layers",
    "layer_names",
    "learned_teachers",
    "linear",
    "margin_softmax",
    "mgd",
    "mlp",
    "of_member",
    "ofd",
    "paraphrase",
    "pick",
    "pkd",
    "predictions",
    "queue_similarity",
    "regressor",
    "review",
    "rrd",
    "score_weighted_neck",
    "semckd",
    "sigmoid_ramp",
    "srd",
    "srrl",
    "stateful",
    "student_doubt",
    "switched",
    "teacher_certainty",
    "teacher_confidence",
    "tinybert",
    "trained",
    "uncertainty_weighted",
    "uniform_layers",
    "uskd",
    "vid",
    "vitkd",
    "warm_decay",
    "weighted",
    "wsld_weight",
]
