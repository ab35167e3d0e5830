"""What a run's model on PyTorch says of its test split, for the page."""

from collections.abc import Callable, Mapping
from pathlib import Path

from trainer import explain, report
from trainer.errors import BadInput
from trainer.evaluate import OpenRun, evaluate, open_run
from trainer.evaluation import Array
from trainer.report.found import Example, Found, choose
from trainer.tasks import IMAGES, TEXT
from trainer.verdicts import fingerprint, judge


def report_run(out: Path, moved: Mapping[str, object], say: Callable[[str], None]) -> Path:
    """Make a run's report anew, from its folder and its data. Raises BadRun, BadData, BadOutput."""
    run = open_run(out, moved)
    say(f"weights {run.weights}")
    return report.write(ask(run))


def ask(run: OpenRun) -> Found:
    """All that the page says of the model."""
    data, test = run.data, run.data.test

    def look(chosen: list[int]) -> tuple[Array, list[Array] | None]:
        stored = test.inputs[chosen].cpu().numpy()
        if not chosen or data.task not in (IMAGES, TEXT):
            return stored, None
        try:
            heats = explain.heats(run.model, data, "saliency", chosen, verdicts.predicted[chosen])
        except BadInput:  # a model of one's own that can't be asked why
            return stored, None
        return stored, [heat.values for heat in heats]

    examples: tuple[Example, ...] = ()
    if data.classes:
        verdicts = judge(run.model, data, test)
        examples = choose(verdicts, test.targets.cpu().numpy(), look)
    return Found(
        config=run.config,
        data_name=data.name,
        task=data.task.name,
        units=data.task.units,
        classes=data.classes,
        parameters=sum(each.numel() for each in run.model.parameters()),
        fingerprint=fingerprint(run.model),
        epochs=run.weights.epochs,
        evaluation=evaluate(run.model, data),
        examples=examples,
    )
