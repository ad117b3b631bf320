"""Functions that all programs share: flags, one-line reports of wrong usage, device settings."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import flags, logging
from ml_collections import config_dict, config_flags

from nvae_tf.config import DataConfig, ExperimentConfig, check_fields, near_names
from nvae_tf.model.pretrained import builtin_names
from nvae_tf.runs.load import TrainedModel
from nvae_tf.runs.workdir import CHECKPOINTS, Workdir

# The flags that are defined here belong to the program that asks for them, and to its --help.
flags.disclaim_key_flags()

# What one call of a program may ask for; more is a slip of the finger, or takes all memory.
MAX_BATCH = 10_000
MAX_IMAGES = 10_000_000
MAX_SEED = 2**63 - 1  # what TensorFlow's generators take


def _keep_last(flag: str) -> None:
    """Drops arguments `--FLAG.FIELD=VALUE` that a later one replaces, as it does for other flags.

    ml_collections would join the values of a tuple that is given twice.
    """
    arguments: list[str] = []
    fields: set[str] = set()
    for argument in reversed(sys.argv[1:]):
        match = re.match(rf"--?({flag}\.[\w.]+)=", argument)
        if match and match[1] in fields:
            continue
        if match:
            fields.add(match[1])
        arguments.insert(0, argument)
    sys.argv[1:] = arguments


def _paths_given(flag: str) -> list[str]:
    """Returns what follows `--FLAG.` in the arguments of the process."""
    matches = [re.match(rf"--?(?:no)?{flag}\.([\w.]+)", argument) for argument in sys.argv]
    return [match[1] for match in matches if match]


def define_model_flags() -> Callable[[], TrainedModel]:
    """Defines the flags that say which trained model a program uses.

    They are `--workdir` and `--checkpoint` for that of a run, and `--preset` for another.

    Returns:
      A function that finds the model that the parsed flags say. It raises a ValueError or a
      FileNotFoundError if there is none.
    """
    workdir = flags.DEFINE_string("workdir", None, "Directory of the run.")
    preset = flags.DEFINE_string(
        "preset",
        None,
        "Trained model to use instead of a run's: one of this package, "
        f"{', '.join(builtin_names())}, or a directory that nvae-save-preset wrote.",
    )
    checkpoint = flags.DEFINE_enum(
        "checkpoint",
        "latest",
        CHECKPOINTS,
        "Checkpoint of the run to use. The best one has the lowest validation -ELBO.",
    )
    flags.mark_flags_as_mutual_exclusive(["workdir", "preset"], required=True)

    def find() -> TrainedModel:
        if workdir.value is not None:
            return TrainedModel.of_run(Workdir(workdir.value), checkpoint.value)
        assert preset.value is not None  # absl has checked that one of the two is given
        if checkpoint.present:
            raise ValueError("--checkpoint is for --workdir; a preset has one state only.")
        return TrainedModel.of_preset(preset.value)

    return find


def define_config_flag(description: str) -> None:
    """Defines `--config.SECTION.FIELD=VALUE` for all fields, for a program that makes a model.

    Args:
      description: What `--help` says first; the fields, their defaults and values follow.
    """
    _define_config(description, dataclasses.asdict(ExperimentConfig()), defaults=True)


def define_images_flag() -> None:
    """Defines `--config.data.FIELD=VALUE`, for a program that asks a trained model.

    The run or the preset has the values of fields that are not given.
    """
    data = dataclasses.asdict(DataConfig())
    description = "The images, if they are not those of the run or the preset."
    _define_config(description, {"data": data}, defaults=False)


def _define_config(
    description: str, sections: Mapping[str, Mapping[str, Any]], defaults: bool
) -> None:
    """Defines the flag of some sections of the configuration.

    ml_collections reads the arguments when the flag is defined, and its error for an unknown field
    is not clear; so the fields are checked before, and wrong ones end the program.
    """
    with usage_errors():
        paths = _paths_given("config")
        check_fields(paths)
        for path in paths:
            if path.partition(".")[0] not in sections:
                raise ValueError(
                    f"--config.{path} cannot change a trained model; this program has "
                    f"{', '.join(f'--config.{name}.*' for name in sections)} only."
                )
    _define_fields("config", sections, f"{description}\n{_help_of(sections, defaults)}")


def define_data_flag(name: str, description: str) -> None:
    """Defines `--NAME.FIELD=VALUE` for the fields of `DataConfig`, for another set of images.

    Args:
      name: The flag.
      description: What `--help` says, beside the name of every field.
    """
    fields = dataclasses.asdict(DataConfig())
    with usage_errors():
        for path in _paths_given(name):
            if path not in fields:
                raise ValueError(f"No field --{name}.{path}. {near_names(path, fields, 0.5)}")
    _define_fields(name, fields, f"{description}\nFields: {', '.join(fields)}.")


def _define_fields(name: str, fields: Mapping[str, Any], text: str) -> None:
    """Defines a flag whose parts are the fields of a dictionary."""
    _keep_last(name)
    for argument in sys.argv[1:]:
        if re.match(rf"--?{name}(=|$)", argument):  # a file's path, as ml_collections can have it
            with usage_errors():
                raise ValueError(
                    f"{argument} gives nothing: fields are given one by one, such as "
                    f"--{name}.{_first_field(fields)}=VALUE."
                )
    config_flags.DEFINE_config_dict(name, config_dict.ConfigDict(dict(fields)), text)
    flags.FLAGS[name].default_as_str = None  # the text has what there is to know
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])


def _first_field(fields: Mapping[str, Any]) -> str:
    """Returns the dotted name of a field of a nested dictionary."""
    name, value = next(iter(fields.items()))
    return f"{name}.{_first_field(value)}" if isinstance(value, Mapping) else name


def _help_of(sections: Mapping[str, Mapping[str, Any]], defaults: bool) -> str:
    """Returns a line for every field of some sections: its name, meaning and values.

    Args:
      sections: The fields and their defaults, by section.
      defaults: Whether the lines have the defaults.
    """
    options = ExperimentConfig().options()
    lines = []
    for section, fields in sections.items():
        for name, default in fields.items():
            option = options[f"{section}.{name}"]
            facts = [f"default: {default!r}"] if defaults else []
            facts += [values] if (values := option.values()) else []
            more = f" ({'; '.join(facts)})" if facts else ""
            lines.append(f"--config.{section}.{name}: {option.meaning}{more}")
    return "\n".join(lines)


def config_changes(config: ExperimentConfig) -> ExperimentConfig:
    """Returns a configuration with the changes that the flag `--config` asks for.

    Raises:
      ValueError: A value is not allowed.
    """
    return config.override(config_flags.get_override_values(flags.FLAGS["config"]))


def data_changes(name: str, data: DataConfig) -> DataConfig | None:
    """Returns a data set with the changes that the flag of `define_data_flag` asks for.

    Args:
      name: The flag.
      data: What the fields that it does not change are from.

    Returns:
      The other data set; None if the flag was not given.

    Raises:
      ValueError: A value is not allowed.
    """
    changes = config_flags.get_override_values(flags.FLAGS[name])
    return dataclasses.replace(data, **changes) if changes else None


def check_flags_of_mode(mode: str, flags_of_mode: Mapping[str, Sequence[str]]) -> None:
    """Raises a ValueError if a flag was given that the mode does not use.

    Args:
      mode: The mode that was chosen.
      flags_of_mode: For each mode, the names of the flags that it uses. Flags that all modes use
        are left out.
    """
    known = {name for names in flags_of_mode.values() for name in names}
    for name in sorted(known - set(flags_of_mode[mode])):
        if flags.FLAGS[name].present:
            raise ValueError(
                f"--mode={mode} has no use for --{name}, only for "
                f"--{', --'.join(flags_of_mode[mode])}."
            )


# What TensorFlow makes of a full disk, a damaged file, a missing right.
_SYSTEM_ERRORS = (
    tf.errors.DataLossError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
)


@contextlib.contextmanager
def usage_errors(argv: Sequence[str] = ()) -> Iterator[None]:
    """Turns errors that the user can correct into one line on stderr and exit code 1.

    Args:
      argv: The arguments that absl did not parse. Any beyond the program's name is an error.
    """
    if len(argv) > 1:
        sys.exit(f"Error: unexpected argument {argv[1]!r}; options look like --name=value.")
    try:
        yield
    except BrokenPipeError:  # nobody reads what is printed: nothing that the user could correct
        raise
    except (ValueError, OSError, ImportError, *_SYSTEM_ERRORS) as error:
        logging.debug("The error was raised here:", exc_info=True)  # --verbosity=1 shows it
        line = " ".join(str(error).split())
        # Names in damaged files may hold what a terminal would obey.
        sys.exit("Error: " + "".join(char if char.isprintable() else "?" for char in line))


def log_warnings_only() -> None:
    """Keeps what libraries log as information off the terminal, unless --verbosity is given."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)


def use_devices(training: bool = False) -> None:
    """Configures TensorFlow for the devices of this machine, before any computation.

    Args:
      training: Whether the program trains.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
    elif training:
        # On CPUs Grappler takes longer than building the graph, and gains nothing in the step. In
        # graphs that only answer it joins convolutions with their biases and activations.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
