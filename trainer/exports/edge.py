"""A folder that runs by itself on a small device: a model, a program, a card; ONNX Runtime and no torch."""

import shutil
import zipfile
from pathlib import Path

from trainer import files
from trainer.errors import BadOutput
from trainer.exports import int8, predict
from trainer.exports.source import Facts, Say, Source
from trainer.tasks import IMAGES, LANGUAGE

README = """\
# {title}

What `{model}` says of {what}: {classes}.

    pip install -r requirements.txt
    python predict.py FILE...          what each is, and how sure the model is
    python predict.py --json FILE...   every class's probability

From a program: `from predict import Predictor; Predictor().predict(data)` gives (class, probability) pairs, the most
probable first. It needs Python 3.8 or newer, on any machine that ONNX Runtime is for, and no network.

{about}"""
WRITER = """\
# {title}

How `{model}` goes on with a text, byte by byte.

    pip install -r requirements.txt
    python predict.py --prompt "The "                     the text, and how it goes on
    python predict.py --prompt "The " --length 100 --temperature 1 --seed 3

From a program: `from predict import Predictor; Predictor().go_on("The ", length=100)` gives the text. It needs Python
3.8 or newer, on any machine that ONNX Runtime is for, and no network.

{about}"""
ABOUT = """\
Model: {file}, {size}. {accuracy}{choice}
Everything else about it is in card.json, its sha256 among it; predict.py refuses a model that is not that file.
"""
WHAT = {
    "image classification": "a picture",
    "text classification": "a text",
    "sound classification": "a recording (WAV)",
}


def bundle(source: Source, checked: Facts, folder: Path, say: Say) -> Path:
    """Write the folder, and a zip of it beside. The model is int8 where that is good enough, else fp32.

    `checked` is what was found of the fp32 model on ONNX Runtime.
    """
    made, choice = choose(source)
    if made:
        card = source.card("int8", "model.int8.onnx", made.model, made.facts, made.int8.accuracy)
    else:
        card = source.card("onnx", "model.onnx", source.onnx, checked)
    accuracy = "" if card.accuracy is None else f"Accuracy {100 * card.accuracy:.1f} % ({card.tested_on}). "
    size = f"{card.size_bytes / 1000:,.0f} kB"
    page = (WRITER if source.run.task is LANGUAGE else README).format(
        title=f"{source.run.config.model}, trained on {source.run.config.data_name}",
        model=source.run.config.model,
        what=WHAT.get(card.task),
        classes=", ".join(card.classes[:20]) + (", ..." if len(card.classes) > 20 else ""),
        about=ABOUT.format(file=card.file, size=size, accuracy=accuracy, choice=choice),
    )
    # 1.18 is the first that reads files of this version of ONNX
    packages = ["onnxruntime>=1.18", "numpy>=1.24", *(["pillow>=10"] if source.run.task is IMAGES else [])]
    try:
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier export, the other model among it
        folder.mkdir(parents=True)
        files.replace(folder / card.file, lambda file: file.write(made.model if made else source.onnx))
        shutil.copyfile(predict.__file__, folder / "predict.py")
        files.replace_text(folder / "README.md", page)
        files.replace_text(folder / "requirements.txt", "\n".join(packages) + "\n")
        files.replace_json(folder / "card.json", card.json())  # last: a folder with a card is whole
        archive = zipped(folder)
    except OSError as error:
        raise BadOutput(f"cannot write {folder}: {error.strerror or error}", "Give another --folder.") from None
    say(f"{'edge':<12} {folder}  {card.size_bytes / 1000:,.0f} kB  {choice}")
    say(f"{'':<12} {archive}  the same as one file")
    return folder


def choose(source: Source) -> tuple[int8.Quantised | None, str]:
    """The quantised model, or None for fp32; and why, in words."""
    if not source.real:
        return None, "fp32, since int8 needs the run's data, which isn't here."
    made = int8.quantise(source)
    if made.good:
        return made, f"int8: {made.in_words()}."
    return None, f"fp32, since int8 has lost too much: {made.in_words()}."


def zipped(folder: Path) -> Path:
    """The folder as one file, NAME.zip beside it."""
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.iterdir()):
            file.write(path, f"{folder.name}/{path.name}")
    return archive
