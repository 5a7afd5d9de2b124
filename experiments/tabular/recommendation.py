"""Recommendation: all items are ranked for each user, by rules, by a teacher, and by students of eight numbers each.

    python experiments/tabular/recommendation.py --source csv:ratings.csv
    python experiments/tabular/recommendation.py --source tsv:plays.tsv --user-field listener --item-field song

Compared by the place of each user's last item, which is held out, among all items that the user has not had: the most
popular items, item kNN, EASE, two towers of width 128, EASE and the towers together, which are the teacher; matrix
factorisation of width 8 alone, and as a student of the teacher's scores (kd), of its ranking (rd, rrd), of the towers'
vectors (de), and of EASE's ranking alone (rrd-ease). Equal scores count against the held-out item. Hyper-parameters
were chosen with --evaluate validation, which holds out each user's last item but one.
"""

import dataclasses

import optax

from jaxkd import augment, data, losses, models, objectives
from jaxkd.experiment import NETWORKS, TRAINING, Context, check_choice, flag, launch
from jaxkd.experiment.domains import COUNT, FRACTION, NON_NEGATIVE, POSITIVE, TEMPERATURE
from jaxkd.experiment.fields import recommendation as field
from jaxkd.experiment.trials import CACHED, Trials
from jaxkd.train import students

KINDS = ("alone", "kd", "rd", "rrd", "de", "rrd-ease")


@dataclasses.dataclass(frozen=True)
class Config(field.RecommendationConfig):
    name: str = "recommendation"
    batch_size: int = 128
    width: int = flag(8, "width of the student's vectors", NETWORKS, COUNT)
    teacher_width: int = flag(128, "width of the vectors of the two towers", NETWORKS, COUNT)
    students: tuple[str, ...] = flag(KINDS, "kinds of students", NETWORKS)
    l2: float = flag(100.0, "lambda of EASE", TRAINING, POSITIVE)
    ease_factor: float = flag(10.0, "factor of EASE's scores beside the towers' logits", TRAINING, NON_NEGATIVE)
    dropout: float = flag(0.5, "rate of dropout on the items that the towers read", TRAINING, FRACTION)
    teacher_steps: int = flag(250, "updates of the two towers", TRAINING, COUNT)
    steps: int = flag(150, "updates of students by kd and rrd", TRAINING, COUNT)
    few_steps: int = flag(60, "updates of other students, which soon know interactions by heart", TRAINING, COUNT)
    teacher_rate: float = flag(3e-3, "first rate of Adam in the towers; it falls along a cosine", TRAINING, POSITIVE)
    learning_rate: float = flag(3e-2, "first rate of Adam in students", TRAINING, POSITIVE)
    temperature: float = flag(1.0, "softmax temperature T of the soft labels", TRAINING, TEMPERATURE)
    alpha: float = flag(0.1, "weight of the interactions beside the soft labels", TRAINING, FRACTION)
    ranks: int = flag(100, "best items of a user that the teacher's ranking has", TRAINING, COUNT)
    rd: float = flag(1.0, "weight of ranking distillation", TRAINING, NON_NEGATIVE)
    rrd: float = flag(0.1, "weight of relaxed ranking distillation", TRAINING, NON_NEGATIVE)
    de: float = flag(0.01, "weight of distillation experts", TRAINING, NON_NEGATIVE)
    seeds: int = flag(3, "students of each kind, trained together", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", KINDS)


SMALL = dict(name="recommendation-smoke", source="made-up", students=("rrd",), teacher_steps=1, steps=1, few_steps=1)
SMALL |= dict(teacher_width=6, ranks=9, seeds=1)


def adam(rate, steps):
    """Adam whose rate falls along a cosine, and its updates."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps)), steps


def make_kinds(config, label, ranks):
    """Kind of student -> its term."""
    kd = objectives.from_logits(losses.kd, temperature=config.temperature)
    rd = objectives.from_outputs(losses.ranking_distillation, "student.logits", "batch.ranking", decay=10.0)
    experts = {side: objectives.distillation_experts(student=side, teacher=side) for side in ("user", "item")}
    keep = min(30, ranks)
    return {
        "alone": label,
        "kd": objectives.weighted(label=(config.alpha, label), kd=(1 - config.alpha, kd)),
        "rd": objectives.weighted(label=label, rd=(config.rd, rd)),
        "rrd": objectives.weighted(label=label, rrd=(config.rrd, objectives.rrd(keep=keep))),
        "rrd-ease": objectives.weighted(label=label, rrd=(config.rrd, objectives.rrd(ranking="ease", keep=keep))),
        "de": objectives.weighted(label=label, **{side: (config.de, term) for side, term in experts.items()}),
    }


def procedure(config, run, logger, plan) -> None:
    ranked = field.open_ranked(config)
    source, seen, popularity = ranked.source, ranked.seen, ranked.popularity
    users, (size, items) = field.rows_of_users(ranked, config.recommend_to), seen.shape
    draw, label = augment.draw_items(seed=config.seed), objectives.from_labels(losses.cross_entropy, label="share")
    batch_size = config.batch_size
    context = Context(run, logger, plan, config.seed, batch_size, lambda b: field.with_shares(draw(b)), dict, config)
    trials = Trials(context, config.seeds, field.COLUMNS, [])

    # 1. Floors, and the teacher.
    scores = {"popular": field.popular(seen), "item kNN": field.item_neighbours(seen)}
    scores["EASE"] = field.ease(seen, config.l2)
    numbers = {"popular": items, "item kNN": items**2, "EASE": items**2}
    for name, found in scores.items():
        trials.add(name, field.measure_scores(found, source), parameters=numbers[name])
    towers = models.two_towers(items, width=config.teacher_width, dropout=config.dropout, popularity=popularity)
    teacher = trials.fit("towers", source, towers, label, *adam(config.teacher_rate, config.teacher_steps))
    counts = models.count_parameters(teacher)
    logits = field.logits_of(context, towers, teacher, source)
    trials.add(f"two towers, {config.teacher_width}", field.measure_scores(logits, source), parameters=counts)
    logits = logits + config.ease_factor * scores["EASE"]
    both = field.measure_scores(logits, source)
    trials.add("teacher: both of them", both, parameters=counts + numbers["EASE"])
    field.say_below(both, field.measure_scores(scores["EASE"], source))

    # 2. Its students.
    ranking, by_ease = (field.best_items(x, seen, config.ranks) for x in (logits, scores["EASE"]))
    taught = data.with_fields(source, teacher_logits=logits, ranking=ranking, ease=by_ease)
    student = models.matrix_factorisation(size, items, width=config.width, popularity=popularity)
    score, kinds = field.scorer(context, student, source), make_kinds(config, label, ranking.shape[1])
    for kind in config.students:
        steps = config.steps if kind in ("kd", "rrd", "rrd-ease") else config.few_steps
        given = CACHED | (dict(teacher=towers, teacher_variables=teacher) if kind == "de" else {})
        found = trials.teach(kind, taught, student, kinds[kind], *adam(config.learning_rate, steps), score, **given)
        if users.size:
            first = students.pick_student(found, 0)
            field.say_best(ranked, users, field.logits_of(context, student, first, source), kind)
    field.with_bytes(trials.rows)
    title = f"{source.name}: {size:,} users, {items:,} items, {int(seen.sum()):,} interactions to train on"
    trials.conclude(title=f"{title}; {config.evaluate}, {config.seeds} seed(s)", headers=field.HEADERS)


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
