"""Calls of the library for the golden cases: pick arguments, feed stored parameters, take the mean that a case states.

`value(method, hyperparameters, inputs) -> scalar`, for every method of manifest.json; no mathematics of its own.
"""

import functools

import jax
import jax.numpy as jnp

from jaxkd import losses, numerics
from jaxkd.losses import (
    contrastive,
    correlation,
    dense,
    divergences,
    flows,
    hints,
    logits,
    maps,
    relations,
    target_class,
    top_k,
    transformers,
)
from jaxkd.losses.cross_tokenizer import uld_answers
from jaxkd.losses.sequence import masked_token_kl
from jaxkd.models.reused import Projector, reused_classifier
from jaxkd.objectives import connector, linear, networks, regressor

# --- logits ---


def _sides(x):
    return x["student_logits"], x["teacher_logits"]


def _top_k(x):
    return x["student_logits"], x["teacher_ids"], x["teacher_logprobs"]


def _standardized(x):
    return tuple(logits.standardize_logits(z) for z in _sides(x))


def _uskd(h, x):
    weak = x["weak_feature"] @ x["fc_kernel"] + x["fc_bias"][None]
    weights = {name: h[name] for name in ("alpha", "beta", "mu")}
    return target_class.uskd(x["student_logits"], weak, x["labels"], **weights, log_ranking=True)


def _uld(h, x):
    spans = (x[name] for name in ("student_start", "student_len", "teacher_start", "teacher_len"))
    options = {"student_temperature": h["Ts"], "teacher_temperature": h["Tt"], "weight": h["weight"]}
    return jnp.mean(uld_answers(*_sides(x), *spans, **options))


def _dkd(h, sides, x):
    return jnp.mean(target_class.dkd(*sides, x["labels"], alpha=h["alpha"], beta=h["beta"], temperature=h["T"]))


def _token_mean(values, x):
    return numerics.masked_mean(values, x["mask"])


_LOGITS = {
    "kd": lambda h, x: jnp.mean(logits.kd(*_sides(x), temperature=h["T"])),
    "logits_mse": lambda h, x: jnp.mean(logits.logits_mse(*_sides(x), temperature=h["T"])),
    "logit_standardization_kd": lambda h, x: jnp.mean(logits.kd(*_standardized(x), temperature=h["T"])),
    "logit_standardization_dkd": lambda h, x: _dkd(h, _standardized(x), x),
    "spherical_kd": lambda h, x: jnp.mean(logits.spherical_kd(*_sides(x), alpha=h["alpha"], temperature=h["T"])),
    "tfkd_reg": lambda h, x: jnp.mean(
        logits.tfkd_reg(
            x["student_logits"],
            x["labels"],
            alpha=h["alpha"],
            temperature=h["T"],
            multiplier=h["multiplier"],
            released=True,
        )
    ),
    "mft": lambda h, x: jnp.mean(
        logits.mft(*_sides(x), x["labels"], temperature=h["T"], threshold=h["threshold"]),
    ),
    "dkd": lambda h, x: _dkd(h, _sides(x), x),
    "nkd": lambda h, x: jnp.mean(target_class.nkd(*_sides(x), x["labels"], gamma=h["gamma"], temperature=h["T"])),
    "uskd": _uskd,
    "wsld": lambda h, x: jnp.mean(target_class.wsld(*_sides(x), x["labels"], alpha=h["alpha"], temperature=h["T"])),
    "dist": lambda h, x: correlation.dist(*_sides(x), beta=h["beta"], gamma=h["gamma"], temperature=h["tau"]),
    "mlkd": lambda h, x: correlation.mlkd(*_sides(x), temperatures=h["temperatures"]),
    "reverse_kl": lambda h, x: _token_mean(divergences.reverse_kl(*_sides(x)), x),
    "symmetric_kl": lambda h, x: _token_mean(
        divergences.jeffreys(*_sides(x), lam=h["lam"], keep_teacher_entropy=True), x
    ),
    "gkd_jsd": lambda h, x: _token_mean(divergences.jsd(*_sides(x), beta=h["beta"], temperature=h["T"]), x),
    "js": lambda h, x: _token_mean(divergences.jsd(*_sides(x), beta=1 - h["lam"]), x),
    "tvd": lambda h, x: _token_mean(divergences.tvd(*_sides(x)), x),
    "skew_kl": lambda h, x: _token_mean(divergences.skew_kl(*_sides(x), alpha=h["lam"], keep_teacher_entropy=True), x),
    "skew_rkl": lambda h, x: _token_mean(divergences.skew_reverse_kl(*_sides(x), alpha=h["lam"]), x),
    "ranking_hinge": lambda h, x: top_k.ranking_hinge(*_top_k(x), x["mask"], margin=h["margin"]),
    "ranking_logistic": lambda h, x: top_k.ranking_logistic(*_top_k(x), x["mask"]),
    "uld": _uld,
    "topk_kl_teacher_renorm": lambda h, x: _token_mean(top_k.topk_kl_teacher_renorm(*_top_k(x), temperature=h["T"]), x),
    "topk_kl_tail_bucket": lambda h, x: _token_mean(top_k.topk_kl_tail_bucket(*_top_k(x), temperature=h["T"]), x),
    "topk_kl_both_renorm": lambda h, x: _token_mean(
        top_k.topk_kl_both_renorm(x["student_logits"], x["teacher_ids"], x["teacher_topk_logits"], temperature=h["T"]),
        x,
    ),
}

# --- sequence ---


_SEQUENCE = {
    "masked_token_kl": lambda h, x: masked_token_kl(
        x["student_logits"], x["teacher_logits"], x["mask"], temperature=h["T"]
    )
}

# --- maps ---


def layers(h, x, side):
    return [x[f"{side}_feature_{i}"] for i in range(h["layers"])]


def pair(x):
    return x["student_feature"], x["teacher_feature"]


def over_layers(loss, h, x, **hyper):
    return jnp.mean(loss(layers(h, x, "student"), layers(h, x, "teacher"), **hyper))


def numbered(x, name):
    return [x[f"{name}{i}"] for i in (1, 2, 3)]


def fitnet_regressor(h, x):
    names = {"kernel": "conv_kernel", "bias": "conv_bias", "scale": "bn_scale", "shift": "bn_bias"}
    assert (h["stride"], h["padding"]) in ((1, 0), (2, 1))
    regress = regressor(halve=h["stride"] == 2, norm=True).apply
    regressed = regress({ours: x[theirs] for ours, theirs in names.items()}, x["student_feature"])
    return jnp.mean(losses.hint(regressed, x["teacher_feature"]))


def ft_translator(h, x):
    own = {side: {"kernels": numbered(x, f"{side}_kernel"), "biases": numbered(x, f"{side}_bias")} for side in "st"}
    if h["use_bn"]:
        pairs = zip(numbered(x, "s_bn_scale"), numbered(x, "s_bn_bias"), strict=True)
        own["s"]["norms"] = [{"scale": scale, "bias": bias} for scale, bias in pairs]
    translate = networks.translator().apply
    return jnp.mean(maps.ft(translate(own["s"], x["student_feature"]), translate(own["t"], x["teacher_feature"])))


def _connect(x, *names, relu=False):
    return connector(relu=relu).apply(
        dict(zip(("kernel", "scale", "bias"), (x[n] for n in names), strict=True)), x["student_feature"]
    )


def ofd(h, x):
    connected = _connect(x, "conn_kernel", "conn_bn_scale", "conn_bn_bias")
    margin = maps.ofd_margin(x["teacher_bn_scale"], x["teacher_bn_bias"])
    return jnp.sum(maps.ofd(connected, x["teacher_feature"], margin))


def vid(h, x):
    s, t = numerics.match_resolution(*pair(x))
    mean = networks.pointwise().apply(numbered(x, "kernel"), s)
    return jnp.mean(maps.vid(mean, t, x["log_scale"], eps=h["eps"]))


_MAPS = {
    "fitnet_hint": lambda h, x: jnp.mean(losses.hint(*pair(x))),
    "fitnet_regressor": fitnet_regressor,
    "at": lambda h, x: over_layers(maps.attention_transfer, h, x, p=h["p"], as_released=True),
    "at_paper": lambda h, x: over_layers(maps.attention_transfer, h, x, weights=h["weights"]),
    "nst": lambda h, x: over_layers(maps.nst, h, x),
    "fsp": lambda h, x: over_layers(flows.fsp, h, x, max_pool=False),
    "ab": lambda h, x: over_layers(maps.ab, h, x, margin=h["margin"], as_released=True),
    "ft": lambda h, x: jnp.mean(maps.ft(*pair(x))),
    "ft_translator": ft_translator,
    "ft_repdistiller": lambda h, x: jnp.mean(maps.ft_repdistiller(*pair(x), p1=h["p1"], p2=h["p2"])),
    "ofd": ofd,
    "vid": vid,
    "kdsvd": lambda h, x: over_layers(flows.kdsvd, h, x, k=h["k"]),
}

# --- features ---


def _project(x, kernel, bias):
    return linear().apply({"kernel": kernel, "bias": bias}, x)


def _stack(x, name, count):
    return jnp.stack([x[f"{name}_{i}"] for i in range(count)], axis=1)


def _layers(loss, h, x, **options):
    pairs = [(x[f"student_feature_{i}"], x[f"teacher_feature_{i}"]) for i in range(h["layers"])]
    return sum(jnp.mean(loss(s, t, **options)) for s, t in pairs)


def _generator(x):
    return {name: x[f"gen_{name}"] for name in ("kernel1", "bias1", "kernel2", "bias2")}


def mgd(h, x):
    s = x["student_feature"]
    s = _project(s, x["align_kernel"][0, 0], x["align_bias"]) if "align_kernel" in x else s
    generated = networks.generator().apply(_generator(x), s, x["mask"])
    return jnp.mean(hints.mgd(generated, x["teacher_feature"], alpha=h["alpha"]))


def ickd(h, x):
    embedded = _connect(x, "embed_kernel", "bn_scale", "bn_bias")
    return jnp.mean(hints.ickd(embedded, x["teacher_feature"], normalize=True))


def srrl(h, x):
    s = _connect(x, "conn_kernel", "bn_scale", "bn_bias", relu=True)
    logits = reused_classifier(s, x["teacher_fc_kernel"], x["teacher_fc_bias"])
    return jnp.mean(hints.srrl(s, x["teacher_feature"], logits, x["teacher_logits"], beta=h["weight"]))


BOTTLENECK = {
    **{f"kernel{i}": f"k{i}" for i in (1, 2, 3)},
    **{f"{name}{i}": f"bn{i}_{name}" for i in (1, 2) for name in ("scale", "bias")},
}
"""Our names of the parameters -> the authors'."""


def simkd(h, x):
    s, t = numerics.match_resolution(x["student_feature"], x["teacher_feature"])
    channels = x["k3"].shape[-1]
    params = {f"conv{i}": {"kernel": x[f"k{i}"]} for i in (1, 2, 3)}
    params |= {f"norm{i}": {"scale": x[f"bn{i}_scale"], "bias": x[f"bn{i}_bias"]} for i in (1, 2, 3)}
    projector = Projector(x["k1"].shape[-1], channels, None)
    zeros = {f"norm{i}": dict.fromkeys(("mean", "var"), jnp.zeros_like(x[f"bn{i}_bias"])) for i in (1, 2, 3)}
    with jax.numpy_dtype_promotion("standard"):  # flax's batch norm names float32 beside float64
        s, _ = projector.apply({"params": params, "batch_stats": zeros}, s, True, mutable=["batch_stats"])
    return jnp.mean(hints.simkd(s, t))


def cat_kd(h, x):
    s, t = x["student_feature"], x["teacher_feature"]
    return jnp.mean(hints.cat_kd(s, t, resolution=h["r"], normalize=h["normalize"]))


def _semckd_embeddings(x, feature, network, count):
    names = ("kernel1", "bias1", "kernel2", "bias2")
    own = [{n: x[f"{network}_{i}_{n}"] for n in names} for i in range(count)]
    embed = networks.embedding().apply
    return jnp.stack([embed(params, x[f"{feature}_{i}"]) for i, params in enumerate(own)], axis=1)


def _semckd_pair(x, i, j):
    s, t = numerics.match_resolution(x[f"student_feature_{i}"], x[f"teacher_feature_{j}"])
    params = {ours: x[f"reg_{i}{j}_{theirs}"] for ours, theirs in BOTTLENECK.items()}
    return hints.hint(networks.bottleneck().apply(params, s), t)


def semckd(h, x):
    S, N = h["layers_s"], h["layers_t"]
    queries = _semckd_embeddings(x, "student_feature", "query", S)
    keys = _semckd_embeddings(x, "teacher_feature", "key", N)
    losses = jnp.stack([jnp.stack([_semckd_pair(x, i, j) for j in range(N)], axis=1) for i in range(S)], axis=1)
    return jnp.mean(hints.semckd(queries, keys, losses, soft=h["soft"]))


def srd(h, x):
    arrays = (x["student_feature"], x["teacher_feature"], x["student_logits"], x["teacher_logits"])
    return hints.srd(*arrays, exponent=h["e"], temperature=h["T"])


def vitkd(h, x):
    low, high = x["student_low"], x["student_high"]
    if "align_high_kernel" in x:
        align = [_project(low[:, i], x[f"align_low{i}_kernel"], x[f"align_low{i}_bias"]) for i in (0, 1)]
        low, high = jnp.stack(align, axis=1), _project(high, x["align_high_kernel"], x["align_high_bias"])
    high = networks.token_generator().apply(_generator(x), high, x["mask"], x["mask_token"])
    options = {name: h[name] for name in ("alpha", "beta", "lam")}
    return jnp.mean(transformers.vitkd(low, x["teacher_low"], high, x["teacher_high"], x["mask"], **options))


def tinybert(h, x):
    S, N = h["layers_s"], h["layers_t"]
    hidden = _stack(x, "student_hidden", S + 1)
    hidden = _project(hidden, x["proj_kernel"], x["proj_bias"]) if "proj_kernel" in x else hidden
    attention = _stack(x, "student_att", S), _stack(x, "teacher_att", N)
    return jnp.mean(transformers.tinybert(*attention, hidden, _stack(x, "teacher_hidden", N + 1)))


def _qkv(x):
    sides = [jnp.stack([x[f"{side}_{part}"] for part in "qkv"], axis=1) for side in ("student", "teacher")]
    lengths = jnp.asarray(x["lengths"], jnp.int32)
    mask = jnp.arange(x["student_q"].shape[1], dtype=jnp.int32)[None] < lengths[:, None]
    return *sides, mask


def minilm(h, x):
    return jnp.mean(transformers.minilm(*_qkv(x), attention_heads=h["relation_heads"]))


def minilmv2(h, x):
    options = {"relations": h["relations"], "relation_heads": h["relation_heads"]}
    return jnp.mean(transformers.minilmv2(*_qkv(x), **options))


def pkd(h, x):
    return jnp.mean(transformers.pkd(x["student_hidden"], x["teacher_hidden"], normalized=h["normalized"]))


def distilbert_cosine(h, x):
    return numerics.masked_mean(transformers.cosine(x["student_hidden"], x["teacher_hidden"]), x["mask"])


def hidden_mse_masked(h, x):
    return numerics.masked_mean(transformers.hidden_mse(x["student_hidden"], x["teacher_hidden"]), x["mask"])


def attention_mse_masked(h, x):
    values = transformers.attention_mse(x["student_att"], x["teacher_att"])
    return numerics.masked_mean(values, transformers.pair_mask(x["mask"]))


_FEATURES = {
    "reviewkd_hcl": lambda h, x: _layers(hints.review_hcl, h, x),
    "mgd": mgd,
    "ickd": ickd,
    "srrl": srrl,
    "simkd": simkd,
    "cat_kd": cat_kd,
    "semckd": semckd,
    "srd": srd,
    "pkd_pearson": lambda h, x: _layers(hints.pkd_pearson, h, x, loss_weight=h["loss_weight"]),
    "vitkd": vitkd,
    "tinybert": tinybert,
    "minilm": minilm,
    "minilmv2": minilmv2,
    "pkd": pkd,
    "distilbert_cosine": distilbert_cosine,
    "hidden_mse_masked": hidden_mse_masked,
    "attention_mse_masked": attention_mse_masked,
}

# --- relations ---


def _embeddings(x):
    return x["student_embedding"], x["teacher_embedding"]


def _linear(x, kernel, bias):
    return jnp.matmul(x, kernel, precision="highest") + bias[(None,) * (x.ndim - 1)]


def _cc_kernel(h, x):
    kernel = relations.bilinear_kernel
    if h["kernel"] == "gaussian":
        kernel = functools.partial(relations.gaussian_kernel, gamma=h["gamma"], order=h["P"])
    return relations.cc(x["student_embedding"], x["teacher_embedding"], kernel=kernel, squared=False)


def _rkd(h, x):
    return relations.rkd(
        x["student_embedding"], x["teacher_embedding"], distance_weight=h["w_d"], angle_weight=h["w_a"]
    )


def _dark_rank_hard(h, x):
    return relations.dark_rank_hard(
        x["student_embedding"], x["teacher_embedding"], alpha=h["alpha"], beta=h["beta"], length=h["L"]
    )


def _crd(h, x):
    student = _linear(x["student_feature"], x["s_kernel"], x["s_bias"])
    teacher = _linear(x["teacher_feature"], x["t_kernel"], x["t_bias"])
    bank = contrastive.CRDBank(x["memory_s"], x["memory_t"], x["z_s_in"], x["z_t_in"])
    return jnp.mean(contrastive.crd(student, teacher, x["idx"], bank, temperature=h["tau"]))


def _ld(h, x):
    edges = dense.ld(x["student_logits"], x["teacher_logits"], temperature=h["T"], mean_over_bins=True)
    return h["loss_weight"] * jnp.sum(x["weight"] * edges) / h["avg_factor"]


def _ifvd(h, x):
    return jnp.mean(dense.ifvd(x["student_feature"], x["teacher_feature"], x["labels"], num_classes=h["num_classes"]))


def _fgd(h, x):
    student = x["student_feature"]
    if "align_kernel" in x:
        student = _linear(student, x["align_kernel"][0, 0], x["align_bias"])
    blocks = (dense.Context(*(x[f"{side}_{name}"] for name in dense.Context._fields)) for side in "st")
    weights = {"alpha": h["alpha"], "beta": h["beta"], "gamma": h["gamma"], "lambda_": h["lam"]}
    return jnp.mean(
        dense.fgd(
            student,
            x["teacher_feature"],
            x["boxes"],
            *blocks,
            image_shape=h["img_shape"],
            temperature=h["temp"],
            **weights,
        )
    )


_RELATIONS = {
    "sp": lambda h, x: relations.sp(x["student_feature"], x["teacher_feature"]),
    "cc": lambda h, x: relations.cc_neighbours(*_embeddings(x)),
    "cc_kernel": _cc_kernel,
    "rkd_distance": lambda h, x: relations.rkd_distance(*_embeddings(x)),
    "rkd_angle": lambda h, x: relations.rkd_angle(*_embeddings(x)),
    "rkd": _rkd,
    "dark_rank_hard": _dark_rank_hard,
    "pkt": lambda h, x: relations.pkt(*_embeddings(x), keep_diagonal=True),
    "crd": _crd,
    "cwd": lambda h, x: jnp.mean(dense.cwd(x["student_feature"], x["teacher_feature"], temperature=h["T"])),
    "ifvd": _ifvd,
    "ld": _ld,
    "fgd": _fgd,
}

METHODS = {**_LOGITS, **_SEQUENCE, **_MAPS, **_FEATURES, **_RELATIONS}


def value(method, hyperparameters, inputs):
    """The scalar that the manifest's `value` states, differentiable in every floating input.

    Args:
      method: A method's name in the manifest.
      hyperparameters: The case's hyper-parameters.
      inputs: The case's inputs, name -> array.

    Returns:
      Scalar JAX array.
    """
    return METHODS[method](hyperparameters, inputs)
