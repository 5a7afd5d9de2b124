"""A recogniser of strings of words learns from a larger one that hears both ways: CTC, and three ways to distil it.

    pip install "jaxkd[speech]"
    python experiments/audio/digit_strings.py --source "npz:fsdd/{split}.npz"
    python experiments/audio/digit_strings.py --source csv:recordings.csv --strings 0 --units characters
    python experiments/audio/digit_strings.py --source folder:words --speaker-pattern '_([a-z]+)_' --held-out ann bob \
        --validation-speakers cleo

Recordings of single words are joined to strings of one speaker, with pauses; with --strings 0 recordings have their
texts in a table. The teacher, GRUs in both directions, and small causal networks learn texts by CTC; speakers of the
test are in no training. Compared: floors that know more than a recogniser may (a constant text; a linear classifier of
equal cuts, which is told the count of words), the teacher, students alone, and students taught by the teacher's
posteriors of each frame, at once or some frames later, of all frames or without most of its blanks, and by its
likeliest texts.
"""

import dataclasses

from jaxkd import losses, models, objectives
from jaxkd.experiment import NETWORKS, TRAINING, Context, check_choice, flag, launch
from jaxkd.experiment.domains import COUNT, FRACTION, POSITIVE, TEMPERATURE, WHOLE
from jaxkd.experiment.evaluator import predict, predictor
from jaxkd.experiment.fields import transcribed
from jaxkd.experiment.fields import transcription as field
from jaxkd.experiment.optimizers import adamw_of
from jaxkd.experiment.trials import CACHED, PERCENT, Column, Trials

STUDENTS = ("alone", "frames", "delayed", "no-blanks", "texts")
CTC = objectives.from_outputs(losses.ctc_loss, "student.logits", "batch.text", "batch.frame_mask", "batch.text_mask")


@dataclasses.dataclass(frozen=True)
class Config(field.TranscriptionConfig):
    name: str = "digit-strings"
    batch_size: int = 32
    students: tuple[str, ...] = flag(STUDENTS, "ways to train students, of " + ", ".join(STUDENTS), NETWORKS)
    hidden: int = flag(64, "width of each direction of the teacher's GRUs", NETWORKS, COUNT)
    width: int = flag(48, "channels of the students", NETWORKS, COUNT)
    blocks: int = flag(3, "blocks of the students", NETWORKS, COUNT)
    teacher_steps: int = flag(600, "updates of the teacher", TRAINING, COUNT)
    steps: int = flag(400, "updates of each student", TRAINING, COUNT)
    teacher_rate: float = flag(3e-3, "highest rate of AdamW in the teacher", TRAINING, POSITIVE)
    learning_rate: float = flag(4e-3, "highest rate of AdamW in the students", TRAINING, POSITIVE)
    temperature: float = flag(1.0, "softmax temperature T of the teacher's posteriors", TRAINING, TEMPERATURE)
    alpha: float = flag(0.5, "weight of the texts' CTC; the teacher has the rest", TRAINING, FRACTION)
    margin: int = flag(1, "frames beside the teacher's labels that count where its blanks do not", TRAINING, WHOLE)
    delay: int = flag(
        2, "frames by which students may be later than the teacher, but for those of all frames", TRAINING, WHOLE
    )
    best: int = flag(4, "likeliest texts of the teacher that students learn", TRAINING, COUNT)
    seeds: int = flag(3, "students of each kind, trained together", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "way to train a student", STUDENTS)


COLUMNS = {
    "validation": Column("validation WER (%)", PERCENT, 1),
    "wer": Column("WER (%)", PERCENT, 1),
    "cer": Column("CER (%)", PERCENT, 1),
    "substitutions": Column("substituted (%)", PERCENT, 1),
    "deletions": Column("deleted (%)", PERCENT, 1),
    "insertions": Column("inserted (%)", PERCENT, 1),
}
SMALL = dict(name="digit-strings-smoke", source="tones", strings=16)
SMALL |= dict(
    test_strings=4, fewest=1, most=2, students=("no-blanks",), buckets=1, hidden=4, width=4, blocks=1, seeds=1
)
SMALL |= dict(batch_size=8, teacher_steps=2, steps=2, best=2)


def distillation(config, name):
    """Objective of a student: CTC on the texts, and what it is taught by."""
    if name == "alone":
        return CTC
    options = dict(temperature=config.temperature)
    if name in ("delayed", "no-blanks"):
        options |= dict(delay=config.delay)
    if name == "no-blanks":
        options |= dict(blank_weight=0.0, margin=config.margin)
    frames = ("student.logits", "teacher.logits", "batch.frame_mask")
    texts = ("student.logits", "batch.hypotheses", "batch.hypothesis_weights", "batch.frame_mask")
    if name == "texts":
        taught = objectives.from_outputs(losses.ctc_sequence_kd, *texts, "batch.hypothesis_mask")
    else:
        taught = objectives.from_outputs(losses.ctc_frame_kd, *frames, **options)
    return objectives.weighted(ctc=(config.alpha, CTC), taught=(1 - config.alpha, taught))


def procedure(config, run, logger, plan) -> None:
    corpus = field.open_corpus(config)
    train, units = corpus.train.source, corpus.units
    prepare = field.prepare_with(config.seed), field.prepare_with(None)
    context = Context(run, logger, plan, config.seed, config.batch_size, *prepare, config)
    these = Trials(context, config.seeds, COLUMNS, [])

    def score_of(model):
        """Function from a network's variables to its error rates; the test split is read once."""
        compiled = predictor(context, model)
        scores = [transcribed.scorer(compiled, split, units) for split in (corpus.validation, corpus.test)]
        return lambda variables: {"validation": scores[0](variables)["wer"], **scores[1](variables)}

    # 1. Floors, and the teacher.
    truth = corpus.test.texts
    these.add("constant text", transcribed.error_rates(truth, transcribed.constant_floor(corpus)))
    if corpus.words:
        these.add("linear on equal cuts, told the count", transcribed.error_rates(truth, transcribed.cut_floor(corpus)))
    big = models.recurrent_net(units.classes, width=96, hidden=config.hidden, layers=1, kernel=3)
    fit = adamw_of(config.teacher_rate)(config.teacher_steps)
    teacher = these.fit("teacher", train, big, CTC, fit, config.teacher_steps)
    these.add("teacher", score_of(big)(teacher), parameters=models.count_parameters(teacher))
    # 2. What it says of the training recordings, without masks; its students.
    _, logits = predict(context, big, teacher, train)
    heard = field.with_field(train, "teacher_logits", logits, per_frame=True)
    if "texts" in config.students:
        for name, values in transcribed.best_texts(logits, train.lengths, best=config.best).items():
            heard = field.with_field(heard, name, values)
    small = models.depthwise_net(units.classes, width=config.width, blocks=config.blocks, kernel=5, per_frame=True)
    score = score_of(small)
    for name in config.students:
        fit = adamw_of(config.learning_rate)(config.steps)
        taught = {} if name == "alone" else CACHED
        source = train if name == "alone" else heard
        these.teach(f"student-{name}", source, small, distillation(config, name), fit, config.steps, score, **taught)
    count = f"{len(train):,} training and {len(truth):,} test recordings"
    these.conclude(title=f"{corpus.test.source.name}: {count}, {config.seeds} seed(s)")


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
