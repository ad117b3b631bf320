"""The Kubernetes examples, by the schemas of Kubernetes and of Kubeflow's Training Operator."""

import copy
import json
import pathlib
import types

import pytest
import yaml

from trainers.run.strategies import check_cluster

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples" / "kubernetes"
KUBERNETES = "1.34"
_REASON = "pip install kubernetes-validate kubeflow-training"


def documents(name):
    return list(yaml.safe_load_all((EXAMPLES / name).read_text()))


def validate(document):
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason=_REASON)
    kubernetes_validate.validate(document, KUBERNETES, strict=True)  # strict: no unknown fields


@pytest.mark.parametrize("name", ["volume.yaml", "serve.yaml"])
def test_kubernetes_own_kinds(name):
    for document in documents(name):
        validate(document)


def test_the_check_can_fail():
    deployment = documents("serve.yaml")[0]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    container["readynessProbe"] = container.pop("readinessProbe")
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason=_REASON)
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        validate(deployment)


class _Kubeflow:
    """Reads documents into the classes that are generated from the operator's schema.

    The generated reader drops fields that it does not know, so what it writes again must be what
    it has read.
    """

    def __init__(self):
        kubeflow = pytest.importorskip("kubeflow.training", reason=_REASON)
        from kubernetes import client

        names = {name: getattr(kubeflow, name) for name in dir(kubeflow) if name[0].isupper()}
        for name, value in names.items():
            if not hasattr(client.models, name):
                setattr(client.models, name, value)
        self._api = client.ApiClient()
        self._job = kubeflow.KubeflowOrgV1TFJob

    def check(self, document):
        """Raises an error unless it is a TFJob with no field too many and none missing."""
        response = types.SimpleNamespace(data=json.dumps(document))
        read = self._api.deserialize(response, self._job)
        assert self._api.sanitize_for_serialization(read) == document


def test_the_job_is_the_training_operators():
    (job,) = documents("train.yaml")
    _Kubeflow().check(job)
    pod = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]
    validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"}} | pod)


@pytest.mark.parametrize("path", ["runPolicy.backofLimit", "tfReplicaSpecs.Worker.restart"])
def test_misspelt_fields_of_a_job_are_found(path):
    (job,) = documents("train.yaml")
    wrong = copy.deepcopy(job)
    *parents, name = path.split(".")
    place = wrong["spec"]
    for parent in parents:
        place = place[parent]
    place[name] = 1
    kubeflow = _Kubeflow()
    with pytest.raises(AssertionError):
        kubeflow.check(wrong)


def test_the_operators_tf_config_is_accepted():
    """As the operator's documentation shows it, with the names of its services."""
    (job,) = documents("train.yaml")
    worker = job["spec"]["tfReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    (port,) = container["ports"]
    name = job["metadata"]["name"]
    addresses = [
        f"{name}-worker-{n}.default.svc:{port['containerPort']}" for n in range(worker["replicas"])
    ]
    for index in range(worker["replicas"]):
        task = {"type": "worker", "index": index}
        given = {"cluster": {"worker": addresses}, "task": task, "environment": "cloud"}
        check_cluster(json.dumps(given))


def test_files_and_names_fit_together():
    """The volume of the claim, the ports and the labels of the service, and the program's flags."""
    (claim,) = documents("volume.yaml")
    (job,) = documents("train.yaml")
    deployment, service = documents("serve.yaml")
    worker = job["spec"]["tfReplicaSpecs"]["Worker"]["template"]["spec"]
    server = deployment["spec"]["template"]
    for pod in (worker, server["spec"]):
        assert claim["metadata"]["name"] in [
            volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]
        ]
    assert service["spec"]["selector"] == server["metadata"]["labels"]
    ports = {port["name"] for port in server["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    assert server["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] in ports
