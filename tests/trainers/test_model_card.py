"""The model card says what the run's files say."""

import dataclasses
import json

import pytest

import nvae_tf
from nvae_tf.evaluation.model_card import model_card
from nvae_tf.runs.load import TrainedModel
from nvae_tf.runs.workdir import Workdir
from tests.conftest import tiny_experiment_config
from tests.trainers.programs import Program, run


def test_a_card_has_the_numbers_of_the_run(finished, tmp_path):
    output = tmp_path / "card.md"
    run("trainers.model_card", f"--workdir={finished.path}", f"--output={output}")
    card = output.read_text()
    assert "$" not in card
    assert card.startswith("---\nlicense: <licence>\nlibrary_name: keras\n")
    parameters = nvae_tf.load_model(finished.path).num_trainable_parameters
    assert f"{parameters:,} trainable parameters" in card
    assert "# Model card: finished\n" in card
    assert f"nvae-export --workdir={finished.path} --export_base=serving/finished\n" in card
    assert "8x8 pixels with 1 channel of 1 bit, binary" in card
    assert "| 0 | 1 | 2x2 | 2 |\n| 1 | 0 | 4x4 | 2 |\n| 2 | 0 | 4x4 | 2 |\n" in card
    assert "4 steps with 4 images each" in card
    assert "frozen in the last" not in card
    assert "3 groups\n  of latent variables in 2 scales and" in card
    with open(finished.evaluation) as file:
        result = json.load(file)
    assert f"| -ELBO | {result['negative_elbo']:.2f} ± " in card
    assert f"KL {result['kl']:.2f} nats" in card
    embedded = card.partition("```json\n")[2].partition("\n```")[0]
    assert json.loads(embedded) == json.loads(finished.read_config().to_json())


def test_a_card_says_what_share_of_the_steps_froze_batch_norm(finished):
    config = finished.read_config().override({"train.frozen_batch_norm_portion": 0.25})
    trained = dataclasses.replace(TrainedModel.of_run(finished), config=config)
    assert "of the steps, batch normalisation frozen in the last 25% of them," in model_card(
        trained
    )


def test_a_card_says_what_the_training_started_from(finished):
    trained = TrainedModel.of_run(finished)
    assert "It started with" not in model_card(trained)
    further = dataclasses.replace(trained, init_from={"name": "mine", "step": 14000})
    assert "seed 0.\n  It started with the weights of `mine` (step 14,000).\n" in model_card(
        further
    )


def test_an_evaluation_of_another_step_does_not_count(finished, tmp_path):
    copy = Workdir(tmp_path)
    copy.write_config(finished.read_config())
    (tmp_path / "checkpoints").symlink_to(finished.checkpoints)
    with open(finished.evaluation) as file:
        result = json.load(file) | {"step": 3}
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    assert "Not evaluated at this step" in model_card(TrainedModel.of_run(copy))


def test_names_are_text_and_not_markup(finished, tmp_path):
    name = "a`b``\n# <b>*x*</b> [y](z) $step"
    config = finished.read_config().override({"data.data_dir": f"/{name}", "data.name": "idx"})
    trained = dataclasses.replace(
        TrainedModel.of_run(finished), name=name, flags=f"'--workdir=/{name}'", config=config
    )
    card = model_card(trained)
    assert "# Model card: a\\`b\\`\\`?\\# &lt;b&gt;\\*x\\*&lt;/b&gt; \\[y\\](z) $step\n" in card
    assert "``` /a`b``?# <b>*x*</b> [y](z) $step ```" in card
    assert 'datasets: ["idx"]' in card
    assert len(card.splitlines()) == len(model_card(TrainedModel.of_run(finished)).splitlines())


def test_a_single_image_has_no_standard_error(finished):
    trained = TrainedModel.of_run(finished)
    errors = {name: None for name in trained.evaluation if name.endswith("_standard_error")}
    card = model_card(dataclasses.replace(trained, evaluation={**trained.evaluation, **errors}))
    assert f"| -ELBO | {trained.evaluation['negative_elbo']:.2f} | " in card
    assert "± " not in card


@pytest.mark.parametrize("fields", [{}, {"negative_elbo": "low"}, {"kl_per_group": 7}])
def test_an_evaluation_of_the_wrong_shape(finished, tmp_path, fields):
    copy = Workdir(tmp_path)
    copy.write_config(finished.read_config())
    (tmp_path / "checkpoints").symlink_to(finished.checkpoints)
    with open(finished.evaluation) as file:
        result = json.load(file) | fields if fields else {"step": 4, "num_images": 3}
    (tmp_path / "evaluation.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="is not one of nvae-evaluate.*run it again"):
        model_card(TrainedModel.of_run(copy))


def test_wrong_usage(tmp_path):
    process = Program("trainers.model_card", f"--workdir={tmp_path}")
    _, err = process.communicate()
    assert process.returncode == 1 and "is not the workdir of a run" in err
    Workdir(tmp_path / "empty").write_config(tiny_experiment_config())
    with pytest.raises(FileNotFoundError, match="no latest checkpoint yet"):
        TrainedModel.of_run(Workdir(tmp_path / "empty"))
