"""Terms: losses with what they own (projections, banks, traced temperatures and weights), and their weighted sums."""

from jaxkd.objectives.cross_layer import review, semckd
from jaxkd.objectives.maps import ab, fgd, ft, mgd, ofd, paraphrase, srrl, vid, vitkd
from jaxkd.objectives.memories import crd, info_nce_queue
from jaxkd.objectives.projections import Projection, connector, linear, mlp, regressor
from jaxkd.objectives.schedules import cosine_ramp
from jaxkd.objectives.temperature import curriculum_temperature
from jaxkd.objectives.terms import (
    Held,
    Number,
    Weigh,
    features_of,
    from_features,
    from_labels,
    from_logits,
    from_outputs,
    hold,
    pick,
    stateful,
    trained,
)
from jaxkd.objectives.tokens import from_hidden
from jaxkd.objectives.vectors import cat_kd, srd, tinybert, uskd
from jaxkd.objectives.weighting import (
    teacher_certainty,
    teacher_confidence,
    uncertainty_weighted,
    weighted,
    wsld_weight,
)

__all__ = [
    "Held",
    "Number",
    "Projection",
    "Weigh",
    "ab",
    "cat_kd",
    "connector",
    "cosine_ramp",
    "crd",
    "curriculum_temperature",
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
    "linear",
    "mgd",
    "mlp",
    "ofd",
    "paraphrase",
    "pick",
    "regressor",
    "review",
    "semckd",
    "srd",
    "srrl",
    "stateful",
    "teacher_certainty",
    "teacher_confidence",
    "tinybert",
    "trained",
    "uncertainty_weighted",
    "uskd",
    "vid",
    "vitkd",
    "weighted",
    "wsld_weight",
]
