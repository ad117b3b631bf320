"""What is published about the trained models is what was measured.

Their `metadata.json` holds what nvae-evaluate measured; cards and pages repeat it.
"""

import pathlib
import re

import pytest

from nvae_tf.evaluation.model_card import model_card
from nvae_tf.model.nvae import NVAE
from nvae_tf.model.pretrained import builtin_names
from nvae_tf.runs.load import TrainedModel

ROOT = pathlib.Path(__file__).parents[1]


def words(text):
    """Returns a text as a single line."""
    return " ".join(text.split())


def section(text, heading):
    """Returns what stands under a heading, up to the next one."""
    found = re.search(
        rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.DOTALL | re.MULTILINE
    )
    return words(found.group(1))


@pytest.fixture(params=builtin_names())
def trained(request):
    return TrainedModel.of_preset(request.param)


def with_error(result):
    return f"{result['negative_elbo']:.2f} ± {result['negative_elbo_standard_error']:.2f}"


@pytest.fixture
def nats(trained):
    return with_error(trained.evaluation)


@pytest.fixture
def bits(trained):
    return f"{trained.evaluation['negative_elbo_bits_per_dim']:.4f}"


def test_the_card_has_what_is_generated(trained):
    card = (ROOT / "nvae_tf/pretrained" / trained.name / "README.md").read_text()
    generated = model_card(trained)
    what, images = re.search(
        r"(\*\*What it is\*\*.*? trainable parameters\.)\s+- (\*\*Images\*\*: .*?\.)\s",
        generated,
        re.DOTALL,
    ).groups()
    groups = section(generated, "Model").partition("| latent group |")[2]
    evaluation = section(generated, "Evaluation").partition("<")[0].strip()
    assert groups and evaluation.endswith(".")
    for part in (words(what), words(images), groups):
        assert part in section(card, "Model")
    assert section(card, "Evaluation").startswith(evaluation)
    assert section(card, "Configuration") == section(generated, "Configuration")


def test_the_table_of_trained_models(trained, nats, bits):
    page = (ROOT / "docs/trained_models.md").read_text()
    (row,) = re.findall(rf"^\| `{trained.name}` \|.* nats.*$", page, re.MULTILINE)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    parameters = NVAE.structure(trained.config.model).num_trainable_parameters
    assert cells[2] == f"{parameters:,}"
    assert cells[4] in (f"{nats} nats", f"{nats} nats, {bits} bits/dim")


def test_the_caption_of_the_readme():
    caption = words((ROOT / "README.md").read_text().partition("## Start")[0])
    fashion = TrainedModel.of_preset("fashion_mnist").evaluation
    digits = TrainedModel.of_preset("mnist_small").evaluation
    assert f"has {fashion['negative_elbo_bits_per_dim']:.4f} bits per dimension on all" in caption
    assert f"Its −ELBO is {with_error(digits)} nats on all" in caption


# Not emoji64: its recipe's numbers are of a split that was corrected later, and say so.
@pytest.mark.parametrize(
    ("trained", "heading"),
    [
        ("mnist_small", "MNIST, binarised anew in every epoch"),
        ("fashion_mnist", "Fashion-MNIST in gray, in a night"),
    ],
    indirect=["trained"],
)
def test_recipes_say_how_the_weights_came_about(trained, heading, nats):
    assert nats in section((ROOT / "docs/recipes.md").read_text(), heading)
