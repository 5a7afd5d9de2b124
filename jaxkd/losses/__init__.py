"""Losses: pure functions of arrays, student first, teacher second, hyper-parameters keyword-only.

Every loss that a submodule lists in its `__all__` is a function of this package. Other pieces that some methods need
(memory banks, masks, context blocks) are imported from the submodules.
"""

# ruff: noqa: F403

from jaxkd.losses import (
    binary,
    chunked,
    clip_kd,
    contrastive,
    correlation,
    cross_tokenizer,
    ctc,
    dense,
    detection,
    divergences,
    embeddings,
    flows,
    hints,
    logits,
    maps,
    margin,
    ranking,
    regression,
    relations,
    segmentation,
    sequence,
    target_class,
    top_k,
    transformers,
)
from jaxkd.losses.binary import *
from jaxkd.losses.chunked import *
from jaxkd.losses.clip_kd import *
from jaxkd.losses.contrastive import *
from jaxkd.losses.correlation import *
from jaxkd.losses.cross_tokenizer import *
from jaxkd.losses.ctc import *
from jaxkd.losses.dense import *
from jaxkd.losses.detection import *
from jaxkd.losses.divergences import *
from jaxkd.losses.embeddings import *
from jaxkd.losses.flows import *
from jaxkd.losses.hints import *
from jaxkd.losses.logits import *
from jaxkd.losses.maps import *
from jaxkd.losses.margin import *
from jaxkd.losses.ranking import *
from jaxkd.losses.regression import *
from jaxkd.losses.relations import *
from jaxkd.losses.segmentation import *
from jaxkd.losses.sequence import *
from jaxkd.losses.target_class import *
from jaxkd.losses.top_k import *
from jaxkd.losses.transformers import *

__all__: list[str] = []
__all__ += logits.__all__
__all__ += divergences.__all__
__all__ += target_class.__all__
__all__ += correlation.__all__
__all__ += top_k.__all__
__all__ += cross_tokenizer.__all__
__all__ += sequence.__all__
__all__ += chunked.__all__
__all__ += ctc.__all__
__all__ += hints.__all__
__all__ += maps.__all__
__all__ += flows.__all__
__all__ += transformers.__all__
__all__ += relations.__all__
__all__ += contrastive.__all__
__all__ += clip_kd.__all__
__all__ += embeddings.__all__
__all__ += margin.__all__
__all__ += dense.__all__
__all__ += segmentation.__all__
__all__ += detection.__all__
__all__ += binary.__all__
__all__ += regression.__all__
__all__ += ranking.__all__
