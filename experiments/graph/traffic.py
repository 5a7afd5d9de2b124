"""A graph-convolutional recurrent network forecasts traffic, and teaches a small network that knows no graph.

    python experiments/graph/traffic.py --series los_speed.csv.xz --adjacency los_adj.csv.xz
    python experiments/graph/traffic.py --series speeds.csv --adjacency graph.csv --minutes 15 --horizons 1 2 4
    python experiments/graph/traffic.py --series metr_la.csv --adjacency adj.csv --missing mask --missing-value 0

One model forecasts all horizons at once. Compared on the last part of the time: the last value, the average at the same
time of day, and a linear autoregression of each sensor; the teacher; a perceptron that sees one sensor's past, alone on
the absolute error, also with the squared one, and taught by the teacher's forecasts, within the teacher's errors as a
bound, and by its hidden states. Mean absolute error and RMSE, of all steps up to a horizon and at the horizon.
"""

import dataclasses

from jaxkd import data, losses, models, objectives
from jaxkd.experiment import NETWORKS, TRAINING, Context, cached_teacher, check_choice, flag, launch
from jaxkd.experiment.domains import COUNT, FRACTION, NON_NEGATIVE, POSITIVE, WHOLE
from jaxkd.experiment.evaluator import predictor
from jaxkd.experiment.fields import traffic
from jaxkd.experiment.trials import Trials

KINDS = ("alone", "alone-squared", "kd", "bounded", "hints")


@dataclasses.dataclass(frozen=True)
class Config(traffic.TrafficConfig):
    name: str = "traffic"
    batch_size: int = 32
    students: tuple[str, ...] = flag(KINDS, "kinds of students", NETWORKS)
    hidden: int = flag(32, "width of the teacher's states", NETWORKS, COUNT)
    learned: int = flag(8, "width of the sensors' embeddings for a learned adjacency; 0 for none", NETWORKS, WHOLE)
    patch: int = flag(3, "past time steps that one step of the teacher's recurrence reads", NETWORKS, COUNT)
    width: int = flag(32, "width of the student's two hidden layers", NETWORKS, COUNT)
    dropout: float = flag(0.1, "rate of dropout on the teacher's last states", NETWORKS, FRACTION)
    teacher_epochs: int = flag(14, "passes of the teacher over the training windows", TRAINING, COUNT)
    epochs: int = flag(20, "passes of the students over the training windows", TRAINING, COUNT)
    learning_rate: float = flag(5e-3, "first rate of Adam; it falls along a cosine", TRAINING, POSITIVE)
    kd: float = flag(0.1, "weight of the squared difference to the teacher's forecasts", TRAINING, NON_NEGATIVE)
    bound: float = flag(0.05, "weight of the squared error where it is above the teacher's", TRAINING, NON_NEGATIVE)
    hint: float = flag(3.0, "weight of the teacher's hidden states", TRAINING, NON_NEGATIVE)
    seeds: int = flag(3, "students of each kind, trained together", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", KINDS)
        if self.past % self.patch:
            raise ValueError(f"--patch is {self.patch}, but --past is {self.past}: give a divisor of it.")

    def updates(self, windows, epochs) -> int:
        """Updates of a training of some epochs."""
        return epochs * data.steps_per_epoch(windows.train, min(self.batch_size, windows.train.size))


SMALL = dict(name="traffic-smoke", series="waves", adjacency="waves", students=("hints",), hidden=4, width=4, seeds=1)
SMALL |= dict(teacher_epochs=1, epochs=1, horizons=(1, 3), past=6, learned=0)


def make_kinds(config, ignore):
    """Kind of student -> its term. The labels' error is absolute; all errors are in units of the data."""
    label = objectives.from_labels(losses.absolute_error, ignore=ignore)
    squared, kd = objectives.from_labels(losses.squared_error, ignore=ignore), objectives.from_logits(losses.logits_mse)
    paths = ("student.logits", "teacher.logits", "batch.label")
    bounded = objectives.from_outputs(each_value(losses.teacher_bounded), *paths, ignore=ignore)
    project = objectives.linear()
    hint = objectives.from_features(losses.hint, student="hidden", teacher="hidden", project=project)
    return {
        "alone": label,
        "alone-squared": objectives.weighted(label=label, squared=(config.kd, squared)),
        "kd": objectives.weighted(label=label, kd=(config.kd, kd)),
        "bounded": objectives.weighted(label=label, bounded=(config.bound, bounded)),
        "hints": objectives.weighted(label=label, hint=(config.hint, hint)),
    }


def each_value(loss):
    """The loss of a vector of outputs for each single one, so that each has a bound of its own."""

    def single(student_outputs, teacher_outputs, labels, **options):
        return loss(student_outputs[..., None], teacher_outputs[..., None], labels[..., None], **options)

    return single


def train_teacher(config, trials, windows, adjacency, test):
    """Trains the teacher; adds its row, and what it says of the training windows to their source."""
    options = dict(hidden=config.hidden, learned=config.learned, patch=config.patch, dropout=config.dropout)
    big = models.tgcn(config.horizons[-1], adjacency, mean=windows.mean, std=windows.std, **options)
    label, updates = make_kinds(config, windows.train.ignore)["alone"], config.updates(windows, config.teacher_epochs)
    fit = traffic.clipped_adam(config.learning_rate, updates)
    variables = trials.fit("teacher", windows.train, big, label, fit, updates)
    forecasts = predictor(trials.context, big)(variables)(windows.test)[1]
    scores = traffic.scores(forecasts, test.labels, config.horizons)
    trials.add("teacher", scores, parameters=models.count_parameters(variables))
    given = cached_teacher(trials.context, windows.train, big, variables, views=1, features=("hidden",))
    return forecasts, scores, given


def train_students(config, trials, windows, test, taught, reader, nothing):
    """Trains the students of each kind; returns the forecasts of one of each."""
    hidden, updates = (config.width, config.width), config.updates(windows, config.epochs)
    small = models.sensor_mlp(config.horizons[-1], hidden=hidden, mean=windows.mean, std=windows.std)
    kinds, predict, forecasts = make_kinds(config, windows.train.ignore), predictor(trials.context, small), {}

    def score(variables):
        forecasts[kind] = predict(variables)(windows.test)[1]
        return traffic.scores(forecasts[kind], test.labels, config.horizons)

    for kind in config.students:
        source, given = windows.train, {}
        if not kind.startswith("alone"):
            source, given = taught, dict(teacher=reader, teacher_variables=nothing)
        fit = traffic.clipped_adam(config.learning_rate, updates)
        trials.teach(kind, source, small, kinds[kind], fit, updates, score, **given)
    return forecasts


def procedure(config, run, logger, plan) -> None:
    series, adjacency, windows = traffic.open_traffic(config)
    context = Context(run, logger, plan, config.seed, config.batch_size, dict, dict, config)
    trials = Trials(context, config.seeds, traffic.columns(config.horizons, config.minutes), [])
    test = traffic.Truth.of(windows.test, windows)
    floors = {
        name: traffic.scores(forecasts, test.labels, config.horizons)
        for name, forecasts in traffic.floors(series, windows, config.minutes).items()
    }
    for name, figures in floors.items():
        trials.add(name, figures)
    by_teacher, scores, given = train_teacher(config, trials, windows, adjacency, test)
    forecasts = {"teacher": by_teacher, **train_students(config, trials, windows, test, *given)}
    traffic.plot(run.path / "forecasts.png", series, test, forecasts, config)
    caption = traffic.verdict(floors, scores, f"mean-mae-{config.horizons[-1]}")
    title = f"{series.name}, {len(series.sensors)} sensors, {config.seeds} seed(s)"
    traffic.finish(trials, title=title, caption=caption)


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
