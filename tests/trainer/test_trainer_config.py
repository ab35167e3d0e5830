import json
from pathlib import Path

import pytest

from trainer.config import TrainConfig, configure
from trainer.errors import BadConfig


def test_the_worked_example_is_the_default_recipe_of_cifar10_and_folders():
    for name in ("cifar10", "folder:/x"):
        config = configure({"data": name})
        assert (config.epochs, config.batch_size, config.lr, config.momentum) == (10, 100, 0.001, 0.9)


def test_digits_have_their_own_recipe_and_flags_win_over_it():
    assert configure({}).lr == 0.02
    assert configure({}).epochs == 30
    assert configure({"lr": 0.5}).lr == 0.5
    assert configure({"lr": 0.5}).batch_size == 50


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", "many"),
        ("batch_size", -1),
        ("lr", 0),
        ("lr", float("nan")),
        ("momentum", 1.0),
        ("seed", -1),
        ("limit", 0),
        ("device", "tpu"),
        ("threads", 0),
        ("checkpoint_every", "0"),
        ("checkpoint_every", "5 minutes"),
        ("data", "folder:"),
        ("epoch", 3),
    ],
)
def test_a_wrong_value_is_refused_by_the_options_name(field, value):
    with pytest.raises(BadConfig, match=f"--{field.replace('_', '-')} "):
        configure({field: value})


def test_a_misspelt_data_set_is_answered_with_the_near_one():
    with pytest.raises(BadConfig, match="did you mean cifar10"):
        configure({"data": "cifar-10"})


def test_checkpoint_times_are_steps_or_epochs():
    for told, steps, epochs in [("7", 7, 1), ("500steps", 500, 1), ("2epochs", None, 2), ("1 epoch", None, 1)]:
        config = configure({"checkpoint_every": told})
        assert (config.checkpoint_steps, config.checkpoint_epochs) == (steps, epochs)


def test_a_folders_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configure({"data": "folder:pictures"}).data == f"folder:{tmp_path / 'pictures'}"


def test_outputs_go_where_the_runner_wants_them_or_into_runs(monkeypatch):
    assert configure({"data": "folder:/a/cats", "seed": 3}).out == Path("runs/cats-lenet-seed3")
    monkeypatch.setenv("ORCHESTRATE_OUTPUTS", "/elsewhere")
    assert configure({}).out == Path("/elsewhere")
    assert configure({"out": "here"}).out == Path("here")


def test_a_configuration_survives_its_own_json():
    config = configure({"data": "cifar10", "limit": 7, "checkpoint_every": "9steps", "cache_dir": "/c"})
    assert configure(json.loads(json.dumps(config.model_dump(mode="json")))) == config


def test_every_field_has_its_option(run):
    page = run("train", "--help").out
    for name in TrainConfig.model_fields:
        assert f"--{name.replace('_', '-')} " in page
