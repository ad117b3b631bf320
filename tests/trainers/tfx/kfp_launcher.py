"""Runs the steps of a compiled pipeline as the launcher of Kubeflow Pipelines does, but here.

What it leaves out: containers, the copying from and to buckets, and resolvers, which only Vertex
AI knows. They find nothing here, as in a pipeline's first run.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from typing import Any

Spec = dict[str, Any]  # a PipelineSpec, read from its YAML
Artifact = dict[str, Any]  # a RuntimeArtifact in JSON


def run_steps(spec: Spec, root: pathlib.Path, environment: dict[str, str]) -> dict[str, Artifact]:
    """Runs the steps in the order of their dependencies.

    Args:
      spec: The compiled pipeline.
      root: Directory of the artifacts, `root/STEP/OUTPUT`.
      environment: Environment variables of the commands.

    Returns:
      The artifacts by `STEP.OUTPUT`, with the metadata that the steps gave them.

    Raises:
      RuntimeError: A step fails; the message has the end of its stderr.
    """
    made: dict[str, Artifact] = {}
    waiting = {
        name: task
        for name, task in spec["root"]["dag"]["tasks"].items()
        if "container" in _executor(spec, name)
    }
    while waiting:
        ready = (n for n, t in waiting.items() if not {*t.get("dependentTasks", [])} & {*waiting})
        name = next(ready)
        made |= _run_step(spec, name, waiting.pop(name), made, root / name, environment)
    return made


def _executor(spec: Spec, name: str) -> dict[str, Any]:
    label = spec["components"][name]["executorLabel"]
    return spec["deploymentSpec"]["executors"][label]


def _run_step(
    spec: Spec,
    name: str,
    task: dict[str, Any],
    made: dict[str, Artifact],
    place: pathlib.Path,
    environment: dict[str, str],
) -> dict[str, Artifact]:
    container = _executor(spec, name)["container"]
    sources = {
        key: "{producerTask}.{outputArtifactKey}".format(**value["taskOutputArtifact"])
        for key, value in task["inputs"].get("artifacts", {}).items()
    }
    given = {key: {"artifacts": [made[s]]} for key, s in sources.items() if s in made}
    parameters = {
        key: value["runtimeValue"]["constant"]
        for key, value in task["inputs"].get("parameters", {}).items()
    }
    outputs: dict[str, Artifact] = {
        key: {"name": f"{name}.{key}", "uri": f"{place}/{key}", "type": value["artifactType"]}
        for key, value in spec["components"][name]["outputDefinitions"]["artifacts"].items()
    }
    execution = {
        "inputs": {"artifacts": given, "parameterValues": parameters},
        "outputs": {
            "artifacts": {key: {"artifacts": [value]} for key, value in outputs.items()},
            "outputFile": f"{place}/output.json",
        },
    }
    place.mkdir(parents=True)
    driver = container.get("lifecycle", {}).get("preCacheCheck")
    for part in filter(None, (driver, container)):
        words = [w.replace("{{$}}", json.dumps(execution)) for w in part["command"] + part["args"]]
        assert words[0] == "python"
        words[0] = sys.executable
        result = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{name}: {result.stderr[-3000:]}")
    written = json.loads((place / "output.json").read_text())["artifacts"]
    return {
        f"{name}.{key}": value | written[key]["artifacts"][0]
        for key, value in outputs.items()
        if key in written
    }
