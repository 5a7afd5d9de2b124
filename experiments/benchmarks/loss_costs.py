"""What every loss of the library costs, forward and with its gradient, next to its operations and bytes.

The roofline fraction is the time that the device would need at its measured rates, for the operations as written at
the peak of a matrix product, or for reading the inputs and writing the results once, whichever takes longer, over the
time it took. Fractions are small where a loss is so small that launching it takes longer.

    python experiments/benchmarks/loss_costs.py        about two minutes on two CPU cores
    python experiments/benchmarks/loss_costs.py --only kd dkd rkd
"""

import functools

import _costs as costs
import _timing as timing
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd.experiment.cli import main
from jaxkd.losses import contrastive, dense
from jaxkd.models.size import count_work

SMALL = {
    "batch": 8,
    "classes": 16,
    "width": 8,
    "side": 4,
    "length": 8,
    "vocabulary": 32,
    "only": ("kd", "hint", "rkd"),
    "rounds": 1,
    "seconds": 0.01,
}
HEADS = 4
KINDS = {
    "logits": ("batch", "classes"),
    "vectors": ("batch", "width"),
    "map": ("batch", "side", "side", "width"),
    "tokens": ("batch", "length", "width"),
    "token_logits": ("batch", "length", "vocabulary"),
    "attention": ("batch", HEADS, "length", "length"),
    "qkv": ("batch", 3, "length", "width"),
}
# Kind -> losses that take the student's and the teacher's array of that kind, and nothing else.
PAIRS = {
    "logits": (
        "dist",
        "jeffreys",
        "jsd",
        "kd",
        "logits_mse",
        "mlkd",
        "reverse_kl",
        "skew_kl",
        "skew_reverse_kl",
        "spherical_kd",
        "tvd",
        "uld",
    ),
    "vectors": (
        "cc",
        "cc_neighbours",
        "clip",
        "dark_rank_hard",
        "dark_rank_soft",
        "info_nce",
        "pkt",
        "rkd",
        "rkd_angle",
        "rkd_distance",
    ),
    "map": (
        "ab",
        "attention_transfer",
        "cat_kd",
        "cwd",
        "ft",
        "ft_repdistiller",
        "hint",
        "ickd",
        "mgd",
        "nst",
        "pixel_kd",
        "pkd_pearson",
        "review_hcl",
        "simkd",
        "sp",
    ),
    "tokens": ("cosine", "hidden_mse"),
    "token_logits": ("ld",),
    "attention": ("attention_mse",),
}
LABELLED = ("dkd", "nkd", "wsld", "mft", "uskd")
TOP_K = ("topk_kl_teacher_renorm", "topk_kl_both_renorm", "topk_kl_tail_bucket", "ranking_hinge", "ranking_logistic")


class Draw:
    """Inputs of the sizes of a configuration."""

    def __init__(self, config):
        self.config, self.rng = config, np.random.default_rng(0)

    def __call__(self, *axes):
        """Normal numbers of one of the kinds, or of axes that are numbers or fields of the configuration."""
        axes = KINDS.get(axes[0], axes) if axes else ()
        shape = [getattr(self.config, a) if isinstance(a, str) else a for a in axes]
        return jnp.asarray(self.rng.standard_normal(shape), jnp.float32)

    def integers(self, high, *shape):
        """Integers below a number."""
        return jnp.asarray(self.rng.integers(0, high, (self.config.batch, *shape)), jnp.int32)

    def two(self, kind):
        """The student's and the teacher's."""
        return self(kind), self(kind)

    def context(self):
        """Parameters of a context block of FGD."""
        C, M = self.config.width, self.config.width // 2
        return dense.Context(*(self(*shape) for shape in ((C,), (), (C, M), (M,), (M,), (M,), (M, C), (C,))))


def cases(draw):
    """Name of a loss -> (function, its arrays, the student's first: that is the one that is differentiated)."""
    c = draw.config
    table = {name: (getattr(losses, name), draw.two(kind)) for kind, names in PAIRS.items() for name in names}
    labels = draw.integers(c.classes)
    table |= {name: (getattr(losses, name), (*draw.two("logits"), labels)) for name in LABELLED}
    kept, ids = jax.lax.top_k(jax.nn.log_softmax(draw("logits")), 8)
    table |= {name: (getattr(losses, name), (draw("logits"), ids, kept)) for name in TOP_K}
    table |= {name: (getattr(losses, name), ([*draw.two("map")], [*draw.two("map")])) for name in ("fsp", "kdsvd")}
    return table | special_cases(draw, labels)


def special_cases(draw, labels):
    """Those with arguments like no other."""
    c = draw.config
    two, mask = draw.two, jnp.ones((c.batch, c.length), jnp.int32)
    layers, scores = ([draw("batch", n, *KINDS[k][1:]) for _ in range(2)] for n, k in ((3, "tokens"), (2, "attention")))
    head, channels = draw("width", "vocabulary"), -jnp.abs(draw("width"))
    bank = contrastive.crd_init(jax.random.key(0), examples=8 * c.batch, width=c.width)
    corners = jnp.abs(draw("batch", 4, 2))
    boxes = jnp.concatenate([corners, corners + c.side / 2], axis=-1)
    return {
        "chunked_kl": (losses.chunked_kl, (*two("tokens"), head, head)),
        "clip_affinity": (losses.clip_affinity, (*two("vectors"), *two("vectors"))),
        "crd": (losses.crd, (*two("vectors"), draw.integers(8 * c.batch, 64), bank)),
        "cross_entropy": (losses.cross_entropy, (draw("logits"), labels)),
        "fgd": (
            functools.partial(losses.fgd, image_shape=(c.side, c.side)),
            (*two("map"), boxes, draw.context(), draw.context()),
        ),
        "ifvd": (functools.partial(losses.ifvd, num_classes=10), (*two("map"), draw.integers(10, c.side, c.side))),
        "info_nce_queue": (losses.info_nce_queue, (*two("vectors"), draw(1024, "width"))),
        "masked_token_kl": (losses.masked_token_kl, (*two("token_logits"), mask)),
        "minilm": (functools.partial(losses.minilm, attention_heads=HEADS), (*two("qkv"), mask)),
        "minilmv2": (functools.partial(losses.minilmv2, relation_heads=HEADS), (*two("qkv"), mask)),
        "ofd": (losses.ofd, (*two("map"), channels)),
        "pkd": (losses.pkd, (layers[0][:, :, 0], layers[1][:, :, 0])),
        "semckd": (losses.semckd, (draw("batch", 3, "width"), draw("batch", 3, "width"), jnp.abs(draw("batch", 3, 3)))),
        "sequence_kd": (losses.sequence_kd, (draw("token_logits"), draw.integers(c.vocabulary, c.length))),
        "srd": (losses.srd, (*two("vectors"), *two("logits"))),
        "srrl": (losses.srrl, (*two("map"), *two("logits"))),
        "standardize_logits": (losses.standardize_logits, (draw("logits"),)),
        "tfkd_reg": (losses.tfkd_reg, (draw("logits"), labels)),
        "tinybert": (losses.tinybert, (*scores, *layers)),
        "token_level": (losses.token_level(losses.kd), (*two("token_logits"), mask)),
        "vid": (losses.vid, (*two("map"), channels)),
        "vitkd": (losses.vitkd, (layers[0][:, :2], layers[1][:, :2], *two("tokens"), mask)),
    }


def forward_and_gradient(function):
    """The summed loss, and the same with its gradient in the first argument."""

    def total(*arrays):
        return jnp.sum(function(*arrays))

    return {"forward": total, "gradient": jax.value_and_grad(total)}


def measure(name, function, arrays, peaks, config):
    row = {"loss": name, "shape": " ".join("x".join(map(str, x.shape)) for x in jax.tree.leaves(arrays[0]))}
    ways = forward_and_gradient(function)
    programs = {way: jax.jit(f) for way, f in ways.items()}
    calls = {way: lambda p=p: jax.block_until_ready(p(*arrays)) for way, p in programs.items()}
    for call in calls.values():
        call()
    times = timing.alternate(calls, rounds=config.rounds, seconds=config.seconds)
    for way, f in ways.items():
        work = count_work(f, *arrays)
        moved = costs.bytes_of(arrays, jax.eval_shape(f, *arrays))
        floor = max(work.total / peaks["float32"], moved / peaks["bytes"])
        row |= {
            f"{way}_us": timing.spread(times[way], scale=1e6),
            f"{way}_mflop": work.total / 1e6,
            f"{way}_mb": moved / 2**20,
            f"{way}_roofline": 100 * floor / np.median(times[way]),
        }
    return row | {"seconds": times}


def benchmark() -> None:
    fast = timing.is_accelerator()
    config = timing.flags(
        __doc__,
        smoke=SMALL,
        batch=(256 if fast else 64, "examples"),
        classes=(1000, "classes of logits"),
        width=(256 if fast else 64, "width of embeddings, channels of maps, hidden size of tokens"),
        side=(16 if fast else 8, "height and width of maps"),
        length=(64 if fast else 16, "tokens of an example"),
        vocabulary=(8192 if fast else 1024, "classes of a token"),
        only=(("",), "names of the losses; all of them if none is given"),
        rounds=(10 if fast else 5, "alternating rounds of forward and gradient"),
        seconds=(0.05, "least length of one side of a round"),
        out=("runs/loss_costs.json", "where the figures go"),
    )
    table = cases(Draw(config))
    if missing := set(losses.__all__) ^ set(table):
        raise ValueError(f"the benchmark and the library differ by {', '.join(sorted(missing))}: add inputs here.")
    chosen = [name for name in sorted(table) if name in config.only or not any(config.only)]
    if unknown := set(filter(None, config.only)) - set(table):
        raise ValueError(f"there is no loss {', '.join(sorted(unknown))}: choose among {', '.join(sorted(table))}.")
    peaks = costs.peaks(seconds=0.5, small=config.rounds == 1)
    rows = [measure(name, *table[name], peaks, config) for name in chosen]
    columns = {"loss": "loss", "shape": "student"}
    for way, title in (("forward", "forward"), ("gradient", "with gradient")):
        columns |= {
            f"{way}_us": f"{title} µs",
            f"{way}_mflop": "MFLOP",
            f"{way}_mb": "MiB",
            f"{way}_roofline": "% of roofline",
        }
    notes = [
        f"Median (quartiles); measured peaks: {peaks['float32'] / 1e9:,.0f} GFLOP/s of float32 products, "
        f"{peaks['bytes'] / 1e9:,.1f} GB/s."
    ]
    timing.publish(
        config.out, "Cost of each loss, float32", rows, columns, notes=notes, peaks=peaks, config=vars(config)
    )


if __name__ == "__main__":
    main(benchmark)
