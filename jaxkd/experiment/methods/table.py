"""Methods by name: what each compares, how much it counts beside the labels, and where that number is from.

R: the CIFAR-100 distillation benchmark (Tian, Krishnan, Isola, https://github.com/HobbitLong/RepDistiller,
scripts/run_cifar_distill.sh); M: later work on it (https://github.com/megvii-research/mdistiller, configs/cifar100); L:
https://github.com/sunshangquan/logit-standardization-KD; D: https://github.com/hunto/DIST_KD; I:
https://github.com/ADLab-AutoDrive/ICKD; S: https://github.com/DefangChen/SimKD; V:
https://github.com/dvlab-research/ReviewKD, CIFAR-100/script/reviewKD.sh; C: https://github.com/GzyAftermath/CAT-KD,
configs/cifar100/CAT_KD; "": nobody tuned it. What differs by pair is in `_per_pair.py`.
"""

import _terms as term
from _published import measured
from _terms import Method

from jaxkd import losses, numerics, objectives
from jaxkd.pytorch import CIFAR100_BENCHMARK
from jaxkd.testing import declarations

ON_LOGITS = {
    ("student_logits", "teacher_logits"): term.tempered,
    ("student_logits", "teacher_logits", "labels"): term.labelled,
}


def on_logits(declared):
    """Whether a loss takes the logits of any two classifiers."""
    return declared.takes in ON_LOGITS and not declared.needs


LOGITS = {
    "kd": Method(term.tempered(losses.kd, temperature=4.0), 0.9, "R", label=0.1),
    "kd_ls": Method(term.tempered(term.standardized, temperature=2.0), 9.0, "L", label=0.1),
    "ctkd": Method(term.ctkd, 0.9, label=0.1),
    "dkd": Method(term.dkd, 1.0, "M"),
    "wsld": Method(term.labelled(losses.wsld, temperature=2.0)),
    "dist": Method(term.tempered(losses.dist), 2.0, "D"),
    "logits_mse": Method(term.tempered(losses.logits_mse), 0.1),
    "jeffreys": Method(term.tempered(losses.jeffreys, temperature=4.0)),
    "topk_kl": Method(term.kept(losses.topk_kl_tail_bucket)),
    "topk_kl_both_renorm": Method(term.kept(losses.topk_kl_both_renorm)),
    "topk_kl_teacher_renorm": Method(term.kept(losses.topk_kl_teacher_renorm)),
    "ranking_hinge": Method(term.kept(losses.ranking_hinge)),
    "ranking_logistic": Method(term.kept(losses.ranking_logistic)),
    "tfkd_reg": Method(lambda p: objectives.from_labels(losses.tfkd_reg), label=0.0),  # no teacher
}
# Every other loss on both sides' logits, with labels or without, is a method too, with its default hyper-parameters.
LOGITS = {d.name: Method(ON_LOGITS[d.takes](d.loss)) for d in declarations(losses) if on_logits(d)} | LOGITS
FEATURES = {
    "fitnet": Method(term.one(losses.hint, 1, project=objectives.regressor(norm=True)), 100.0, "R"),
    "at": Method(term.every(losses.attention_transfer, as_released=True), 1000.0, "R"),
    "nst": Method(term.every(losses.nst), 50.0, "R"),
    "sp": Method(term.one(losses.sp), 3000.0, "R"),
    "cc": Method(term.pooled(losses.cc_neighbours, **term.to_128), 0.02, "R"),
    "cc_kernel": Method(term.pooled(lambda s, t: losses.cc(numerics.unit(s), numerics.unit(t)), **term.to_128)),
    "vid": Method(term.vid, 1.0, "R"),
    "rkd": Method(term.pooled(losses.rkd), 1.0, "R"),
    "pkt": Method(term.pooled(losses.pkt, keep_diagonal=True), 30000.0, "R"),
    "ab": Method(term.unactivated(objectives.ab, as_released=lambda p: True), 1.0, "R", first=True),
    "ft": Method(term.factors(losses.ft_repdistiller), 200.0, "R", before=term.paraphraser),
    "ft_paper": Method(term.factors(losses.ft), before=term.paraphraser),
    "fsp": Method(term.every(losses.fsp), 50.0, "R", first=True),
    "kdsvd": Method(term.every(losses.kdsvd), 1.0, "M"),
    "crd": Method(
        lambda p: objectives.crd(
            student="pooled", teacher="pooled", examples=p.examples, labels=p.labels(), negatives=16384
        ),
        0.8,
        "R",
    ),
    "ofd": Method(term.unactivated(objectives.ofd, norms=lambda p: p.norms()), 1.0, "M"),
    "review": Method(term.review, 1.0, "V"),
    "semckd": Method(lambda p: objectives.semckd(students=p.students, teachers=p.teachers), 400.0, "S", kd=1.0),
    "ickd": Method(term.one(losses.ickd, project=objectives.connector(), normalize=True), 2.5, "I"),
    "srrl": Method(
        lambda p: objectives.srrl(student="last", teacher="last", classifier=p.classifier), 1.0, "S", kd=1.0
    ),
    "simkd": Method(
        lambda p: objectives.from_features(losses.simkd, student="projected", teacher="last", pool=True),
        1.0,
        "S",
        label=0.0,
        around=term.reused,
    ),
    "cat_kd": Method(term.cat_kd, 1.0, "C"),
    "srd": Method(lambda p: objectives.srd(student="pooled", teacher="pooled")),
    "mgd": Method(lambda p: objectives.mgd(student=p.students[-1], teacher=p.teachers[-1])),
    "uskd": Method(lambda p: objectives.uskd(feature=p.students[-2])),  # no teacher
    "cwd": Method(term.one(losses.cwd, **term.to_teacher)),
    "pkd_pearson": Method(term.one(losses.pkd_pearson, **term.to_teacher)),
    "dark_rank_hard": Method(term.pooled(losses.dark_rank_hard, alpha=1e-3)),
    "dark_rank_soft": Method(term.pooled(losses.dark_rank_soft, alpha=1e-3)),
    "cosine": Method(term.pooled(losses.cosine, **term.to_teacher)),
    "hint": Method(term.one(losses.hint, **term.to_teacher)),
    "info_nce": Method(term.pooled(losses.info_nce, **term.to_128)),
    "clip": Method(term.pooled(losses.clip, **term.to_128)),
    "info_nce_queue": Method(lambda p: objectives.info_nce_queue(student="pooled", teacher="pooled")),
}
METHODS = LOGITS | FEATURES
ALONE = Method(lambda p: None)  # the labels only


def chosen(pair, names, *, table=False, networks=CIFAR100_BENCHMARK):
    """The methods asked for, or those that others measured for the pair, after a look at all names."""
    for name in pair:
        if name not in networks:
            raise ValueError(f"there is no network {name!r}: choose from {', '.join(networks)}.")
    names = measured(pair) if table else names
    if not names:
        raise ValueError(f"nobody published {pair[0]} -> {pair[1]}: leave --table out and name --methods.")
    for name in names:
        if name not in METHODS:
            raise ValueError(f"there is no method {name!r}: choose from {', '.join(METHODS)}.")
    return tuple(names)


def applies(name, pair):
    """Whether a method can compare the two networks."""
    return pair.alike or name not in ("fsp", "kdsvd")


def objective(name, pair):
    """What a student by some method is trained for; "alone" has the labels only."""
    on_labels = objectives.from_labels(losses.cross_entropy)
    if name == "alone" or METHODS[name].first:
        return on_labels
    method = METHODS[name]
    terms = {"label": (method.label, on_labels), name: (method.weight, method.make(pair))}
    if method.kd:
        terms["soft"] = (method.kd, METHODS["kd"].make(pair))
    return objectives.weighted(**terms)
