"""The table of methods: name -> term, weight, source of the weight; the objective is `Method`'s.

R: the CIFAR-100 distillation benchmark (Tian, Krishnan, Isola, https://github.com/HobbitLong/RepDistiller,
scripts/run_cifar_distill.sh); M: later work on it (https://github.com/megvii-research/mdistiller, configs/cifar100); L:
https://github.com/sunshangquan/logit-standardization-KD; D: https://github.com/hunto/DIST_KD; I:
https://github.com/ADLab-AutoDrive/ICKD; S: https://github.com/DefangChen/SimKD; V:
https://github.com/dvlab-research/ReviewKD, CIFAR-100/script/reviewKD.sh; C: https://github.com/GzyAftermath/CAT-KD,
configs/cifar100/CAT_KD; "": nobody tuned it. Weights that differ from pair to pair stand in `tuned`.
"""

from __future__ import annotations

from jaxkd import losses, numerics, objectives
from jaxkd.experiment.methods import makers as make
from jaxkd.experiment.methods.makers import Method
from jaxkd.testing import declarations

_LOGITS: dict[str, Method] = {
    "kd": Method(make.on_logits(losses.kd, temperature=4.0), 0.9, "R", label=0.1),
    "kd_ls": Method(make.on_logits(make.standardized_kd, temperature=2.0), 9.0, "L", label=0.1),
    "ctkd": Method(make.ctkd, 0.9, label=0.1),
    "dkd": Method(make.dkd, 1.0, "M"),
    "wsld": Method(make.on_logits_and_labels(losses.wsld, temperature=2.0)),
    "dist": Method(make.on_logits(losses.dist), 2.0, "D"),
    "logits_mse": Method(make.on_logits(losses.logits_mse), 0.1),
    "jeffreys": Method(make.on_logits(losses.jeffreys, temperature=4.0)),
    "topk_kl": Method(make.on_top_logits(losses.topk_kl_tail_bucket)),
    "topk_kl_both_renorm": Method(make.on_top_logits(losses.topk_kl_both_renorm)),
    "topk_kl_teacher_renorm": Method(make.on_top_logits(losses.topk_kl_teacher_renorm)),
    "ranking_hinge": Method(make.on_top_logits(losses.ranking_hinge)),
    "ranking_logistic": Method(make.on_top_logits(losses.ranking_logistic)),
    "tfkd_reg": Method(lambda pair: objectives.from_labels(losses.tfkd_reg), label=0.0),  # without the teacher
}
_TAKES = {
    ("student_logits", "teacher_logits"): make.on_logits,
    ("student_logits", "teacher_logits", "labels"): make.on_logits_and_labels,
}
_DECLARED = {d.name: Method(_TAKES[d.takes](d.loss)) for d in declarations(losses) if d.takes in _TAKES and not d.needs}
LOGITS: dict[str, Method] = _DECLARED | _LOGITS
"""Methods that read logits alone, so that cached logits serve them: those above, and with its default hyper-parameters
every other loss that declares that it takes both logits, with labels or without."""
FEATURES: dict[str, Method] = {
    "fitnet": Method(make.on_stage(losses.hint, 1, project=objectives.regressor(norm=True)), 100.0, "R"),
    "at": Method(make.on_stages(losses.attention_transfer, as_released=True), 1000.0, "R"),
    "nst": Method(make.on_stages(losses.nst), 50.0, "R"),
    "sp": Method(make.on_stage(losses.sp), 3000.0, "R"),
    "cc": Method(make.on_pooled(losses.cc_neighbours, **make.TO_128), 0.02, "R"),
    "cc_kernel": Method(make.on_pooled(lambda s, t: losses.cc(numerics.unit(s), numerics.unit(t)), **make.TO_128)),
    "vid": Method(make.vid, 1.0, "R"),
    "rkd": Method(make.on_pooled(losses.rkd), 1.0, "R"),
    "pkt": Method(make.on_pooled(losses.pkt, keep_diagonal=True), 30000.0, "R"),
    "ab": Method(make.on_preacts(objectives.ab, as_released=lambda pair: True), 1.0, "R", term_first=True),
    "ft": Method(make.factors(losses.ft_repdistiller), 200.0, "R", pretrain=make.paraphraser),
    "ft_paper": Method(make.factors(losses.ft), pretrain=make.paraphraser),
    "fsp": Method(make.on_stages(losses.fsp), 50.0, "R", term_first=True),
    "kdsvd": Method(make.on_stages(losses.kdsvd), 1.0, "M"),
    "crd": Method(make.crd, 0.8, "R"),
    "ofd": Method(make.on_preacts(objectives.ofd, norms=lambda pair: pair.preact_statistics()), 1.0, "M"),
    "review": Method(make.review, 1.0, "V"),
    "semckd": Method(make.semckd, 400.0, "S", kd=1.0),
    "ickd": Method(make.on_stage(losses.ickd, project=objectives.connector(), normalize=True), 2.5, "I"),
    "srrl": Method(
        lambda pair: objectives.srrl(student="last", teacher="last", classifier=pair.classifier), 1.0, "S", kd=1.0
    ),
    "simkd": Method(
        lambda pair: objectives.from_features(losses.simkd, student="projected", teacher="last", pool=True),
        1.0,
        "S",
        label=0.0,
        wrap=make.reused_classifier,
    ),
    "cat_kd": Method(make.cat_kd, 1.0, "C"),
    "srd": Method(lambda pair: objectives.srd(student="pooled", teacher="pooled")),
    "mgd": Method(lambda pair: objectives.mgd(student=pair.student_stages[-1], teacher=pair.teacher_stages[-1])),
    "uskd": Method(lambda pair: objectives.uskd(feature=pair.student_stages[-2])),  # without the teacher
    "cwd": Method(make.on_stage(losses.cwd, **make.TO_TEACHER)),
    "pkd_pearson": Method(make.on_stage(losses.pkd_pearson, **make.TO_TEACHER)),
    "dark_rank_hard": Method(make.on_pooled(losses.dark_rank_hard, alpha=1e-3)),
    "dark_rank_soft": Method(make.on_pooled(losses.dark_rank_soft, alpha=1e-3)),
    "cosine": Method(make.on_pooled(losses.cosine, **make.TO_TEACHER)),
    "hint": Method(make.on_stage(losses.hint, **make.TO_TEACHER)),
    "candidates_kl": Method(make.on_pooled(losses.candidates_kl)),
    "info_nce": Method(make.on_pooled(losses.info_nce, **make.TO_128)),
    "clip": Method(make.on_pooled(losses.clip, **make.TO_128)),
    "info_nce_queue": Method(lambda pair: objectives.info_nce_queue(student="pooled", teacher="pooled")),
    "queue_similarity": Method(lambda pair: objectives.queue_similarity(student="pooled", teacher="pooled")),
}
"""Methods that read features too."""
METHODS: dict[str, Method] = LOGITS | FEATURES
ALONE = Method(lambda pair: objectives.from_labels(losses.cross_entropy), label=0.0)
"""No method: a student that learns from the labels alone."""
