"""Losses: pure functions of arrays, student first, teacher second, hyper-parameters keyword-only.

Pieces that some methods need beside their loss (connectors, memory banks, margins) stand in the submodules.
"""

from jaxkd.losses.chunked import chunked_kl
from jaxkd.losses.contrastive import clip, clip_affinity, crd, info_nce, info_nce_queue
from jaxkd.losses.correlation import dist, mlkd
from jaxkd.losses.cross_tokenizer import uld
from jaxkd.losses.dense import cwd, fgd, ifvd, ld, pixel_kd
from jaxkd.losses.divergences import jeffreys, jsd, reverse_kl, skew_kl, skew_reverse_kl, tvd
from jaxkd.losses.flows import fsp, kdsvd
from jaxkd.losses.hints import cat_kd, hint, ickd, mgd, pkd_pearson, review_hcl, semckd, simkd, srd, srrl
from jaxkd.losses.logits import cross_entropy, kd, logits_mse, mft, spherical_kd, standardize_logits, tfkd_reg
from jaxkd.losses.maps import ab, attention_transfer, ft, ft_repdistiller, nst, ofd, vid
from jaxkd.losses.relations import (
    cc,
    cc_neighbours,
    dark_rank_hard,
    dark_rank_soft,
    pkt,
    rkd,
    rkd_angle,
    rkd_distance,
    sp,
)
from jaxkd.losses.sequence import masked_token_kl, sequence_kd, token_level
from jaxkd.losses.target_class import dkd, nkd, uskd, wsld
from jaxkd.losses.top_k import (
    ranking_hinge,
    ranking_logistic,
    topk_kl_both_renorm,
    topk_kl_tail_bucket,
    topk_kl_teacher_renorm,
)
from jaxkd.losses.transformers import attention_mse, cosine, hidden_mse, minilm, minilmv2, pkd, tinybert, vitkd

__all__ = [
    "ab",
    "attention_mse",
    "attention_transfer",
    "cat_kd",
    "cc",
    "cc_neighbours",
    "chunked_kl",
    "clip",
    "clip_affinity",
    "cosine",
    "crd",
    "cross_entropy",
    "cwd",
    "dark_rank_hard",
    "dark_rank_soft",
    "dist",
    "dkd",
    "fgd",
    "fsp",
    "ft",
    "ft_repdistiller",
    "hidden_mse",
    "hint",
    "ickd",
    "ifvd",
    "info_nce",
    "info_nce_queue",
    "jeffreys",
    "jsd",
    "kd",
    "kdsvd",
    "ld",
    "logits_mse",
    "masked_token_kl",
    "mft",
    "mgd",
    "minilm",
    "minilmv2",
    "mlkd",
    "nkd",
    "nst",
    "ofd",
    "pixel_kd",
    "pkd",
    "pkd_pearson",
    "pkt",
    "ranking_hinge",
    "ranking_logistic",
    "reverse_kl",
    "review_hcl",
    "rkd",
    "rkd_angle",
    "rkd_distance",
    "semckd",
    "sequence_kd",
    "simkd",
    "skew_kl",
    "skew_reverse_kl",
    "sp",
    "spherical_kd",
    "srd",
    "srrl",
    "standardize_logits",
    "tfkd_reg",
    "tinybert",
    "token_level",
    "topk_kl_both_renorm",
    "topk_kl_tail_bucket",
    "topk_kl_teacher_renorm",
    "tvd",
    "uld",
    "uskd",
    "vid",
    "vitkd",
    "wsld",
]
