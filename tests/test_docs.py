"""The documentation: its links lead somewhere, and its commands have the options they are given."""

import functools
import pathlib
import pydoc
import re
import shlex
import subprocess
import sys

import pytest

import nvae_tf.evaluation
from nvae_tf import config, presets
from nvae_tf.config import check_fields
from nvae_tf.runs.workdir import CHANGEABLE
from tests import configuration_page
from tests.trainers.programs import run

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
_STARTED = re.findall(
    r'def (\w+)\(\) -> None:\n +"""Entry point of `(.*)`."""\n +_start\("(.*)"\)',
    (ROOT / "trainers/start.py").read_text(),
)
SCRIPTS = {script: module for _, script, module in _STARTED}
SECTIONS = (  # whose fields have a page of their own
    config.ModelConfig,
    config.DataConfig,
    config.OptimizerConfig,
    config.TrainConfig,
)
# Programs that are not on every machine.
OTHERS = (
    "examples.tfx_pipeline",
    "benchmarks.compile_for_gpu",
    "benchmarks.run_compiled_step",
    "benchmarks.train_compiled_step",
    "pytest",
    "pip",
    "venv",
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings}
            assert anchor in anchors, target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_nothing_stands_twice_on_a_page(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    parts = [part for part in text.split("\n\n") if len(part) > 40]
    assert len(parts) == len(set(parts))


def test_one_version_everywhere():
    version = re.search(r'version="([\d.]+)"', (ROOT / "setup.py").read_text())[1]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"version = {{{version}}}\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f'    version = "{version}",\n' in (ROOT / "MODULE.bazel").read_text()


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in navigation


def test_pages_load_files_of_their_own_only():
    configuration = (ROOT / "mkdocs.yml").read_text()
    loaded = re.findall(r"^  - (\S+\.(?:js|css))$", configuration, flags=re.MULTILINE)
    assert "assets/katex/katex.min.js" in loaded
    for name in loaded:
        assert (ROOT / "docs" / name).is_file(), name  # and no address
    style = (ROOT / "docs/assets/katex/katex.min.css").read_text()
    for font in re.findall(r"url\(([^)]+\.woff2)\)", style):
        assert (ROOT / "docs/assets/katex" / font).is_file(), font


def commands():
    """(module, arguments) of every call of one of our programs in a block of shell commands."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                found += filter(None, map(parse, simple_commands(line)))
    return found


def simple_commands(line):
    """The words of the commands of a line, without assignments before them."""
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    command = []
    for word in [*words, ";"]:
        if word in ("&&", "||", ";", "|", "&"):
            if command:
                yield command
            command = []
        elif command or not re.match(r"[A-Z_]+=", word):
            command.append(word)


def parse(words):
    if words[0] in SCRIPTS:
        return SCRIPTS[words[0]], words[1:]
    assert not words[0].startswith("nvae-"), words
    if words[0].startswith("python") and words[1] == "-m":
        return words[2], words[3:]
    if words[0].startswith("python") and words[1].endswith(".py"):
        return words[1].removesuffix(".py").replace("/", "."), words[2:]
    return None


@functools.cache
def options(module):
    text = run(module, "--helpfull", returncode=1)
    return set(re.findall(r"^\s+-+(?:\[no\])?(\w+)", text, flags=re.MULTILINE))


def test_setup_installs_every_program():
    installed = re.findall(r'"(nvae-[\w-]+)=trainers.start:(\w+)"', (ROOT / "setup.py").read_text())
    assert sorted(installed) == sorted((script, name) for name, script, _ in _STARTED)
    assert len(installed) == 12


def test_commands_have_the_options_that_they_are_given():
    checked = set()
    for module, arguments in commands():
        if module in OTHERS:
            continue
        for argument in arguments:
            name, _, value = argument.lstrip("-").partition("=")
            assert argument.startswith("--"), (module, argument)
            if name.startswith("config."):
                check_fields([name.removeprefix("config.")])
            elif name.startswith("novel."):
                check_fields([f"data.{name.removeprefix('novel.')}"])
            elif name == "preset" and "/" not in value:  # else a directory
                presets.get(value)
            else:
                assert name in options(module), (module, argument)
        checked.add(module)
    assert set(SCRIPTS.values()) <= checked  # every program is shown somewhere


# Every program whose times or figures the documentation has, with the least work that it can do,
# and what it then prints.
MEASURING = {
    "calibrate": ([], r"\d ms"),
    "compiled_step": (["--preset=mnist_small", "--output={}/steps"], "StableHLO"),
    "depthwise": ([], r"\d"),
    "input_pipeline": (["--images=300", "--batches=3"], r"156,800"),
    "likelihood": (["--num_iw_samples=2", "--images=1"], r"\d"),
    "memory": (["--steps=1", "--batch=2"], r"\d"),
    "replicas": (["--preset=mnist_small", "--replicas=2", "--replica_batch=1"], r"\d"),
    "runtimes": (["--repeats=1"], r"TensorFlow +\|.*\| [\d.]+ ms"),
    "sampling": (["--workloads=mnist_4_2", "--repeats=1"], "mnist_4_2"),
    "serving": (["--repeats=1"], "log_likelihood"),
    "summaries": (["--workloads=mnist_4_2", "--steps=1"], "mnist_4_2"),
    "train_step": (["--workloads=mnist_4_2", "--steps=1"], "mnist_4_2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURING)
def test_what_measures_prints_what_it_measured(name, tmp_path):
    arguments, printed = MEASURING[name]
    command = [sys.executable, "-m", f"benchmarks.{name}"]
    command += [argument.format(tmp_path) for argument in arguments]
    # Not from the fork server of other tests: these start processes of their own.
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.search(printed, ended.stdout), ended.stdout


def test_every_benchmark_is_run_once():
    programs = {
        path.stem
        for path in (ROOT / "benchmarks").glob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    # Those that need more: JAX (tests/test_compiled_steps.py), JAX with its CUDA plugin, a server
    # (tests/export/test_kserve.py), runs (tests/test_curves.py).
    assert programs - set(MEASURING) == {
        "run_compiled_step",
        "train_compiled_step",
        "read_compiled_state",
        "compile_for_gpu",
        "kserve",
        "curves",
    }


def test_the_fields_that_may_change_are_documented():
    text = (ROOT / "docs/training.md").read_text()
    paragraph = next(p for p in text.split("\n\n") if p.startswith("When a run is resumed"))
    assert sorted(re.findall(r"`((?:data|train)\.\w+)`", paragraph)) == sorted(CHANGEABLE)


def test_the_page_of_the_configuration_is_what_the_fields_say():
    written = (ROOT / "docs/configuration.md").read_text()
    assert written == configuration_page.page(), f"run: {configuration_page.__doc__}"


def test_classes_of_the_api_describe_their_fields():
    text = (ROOT / "docs/api.md").read_text()
    places = set(re.findall(r"^::: ([\w.]+)$", text, re.M))
    lists = re.findall(r"^::: ([\w.]+)\n    options:\n      members:([^:]*)", text, re.M)
    for path, members in lists:
        places |= {f"{path}.{member}" for member in re.findall(r"\b[A-Z]\w+", members)}
    classes = [found for place in places if isinstance(found := pydoc.locate(place), type)]
    described = [c for c in classes if "__annotations__" in vars(c) and c not in SECTIONS]
    assert nvae_tf.evaluation.LikelihoodResult in described
    for class_ in described:
        _, _, attributes = class_.__doc__.partition("Attributes:")
        for field in class_.__annotations__:
            assert re.search(rf"^ +{field}: ", attributes, re.M), (class_, field)


def test_the_members_that_docs_name_exist():
    named = [
        (path, member.strip())
        for page in PAGES
        for path, members in re.findall(
            r"^::: ([\w.]+)\n    options:\n      members: \[(.*)\]", page.read_text(), re.M
        )
        for member in members.split(",")
    ]
    assert ("nvae_tf.model.inference.InferenceModel", "weights") in named
    for path, member in named:
        assert hasattr(pydoc.locate(path), member), (path, member)
