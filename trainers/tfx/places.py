"""Where the directories of a pipeline's artifacts are on this machine."""

from __future__ import annotations

import os

# Vertex AI mounts all buckets there. The launcher of Kubeflow Pipelines copies a step's inputs
# there before the step, and its outputs from there after it.
_BUCKETS = ("gs://", "/gcs/")


def local_directory(name: str, uri: str) -> str:
    """Returns the path of an artifact's directory.

    Args:
      name: The directory's name in an error.
      uri: A path, or `gs://BUCKET/PATH`, which is `/gcs/BUCKET/PATH` where that is mounted.

    Raises:
      ValueError: The directory is neither local nor mounted.
    """
    scheme, mount = _BUCKETS
    if uri.startswith(scheme) and os.path.isdir(mount):
        return mount + uri.removeprefix(scheme)
    if "://" in uri:
        raise ValueError(
            f"{name} must be a local directory, or one in gs:// where {mount} is mounted; "
            f"received {uri!r}."
        )
    return uri
