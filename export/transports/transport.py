"""What all transports have in common: the model that is asked, and the reasons of no answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from export.limits import MAX_REPLY

# A server that is down or busy is asked again after 0.2, 0.4, 0.8 and 1.6 seconds or a little more
# or less, lest clients that were refused together return together.
MAX_RETRIES = 4  # gRPC allows no more
FIRST_WAIT = 0.2  # seconds
TEMPORARY = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
TOO_LARGE = f"its answer has more than {MAX_REPLY:,} bytes"


class Target(NamedTuple):
    """A model on a server, optionally in the version of a number or of a label."""

    server: str  # HOST:PORT
    model: str
    version: int | None = None  # None for the newest that is loaded
    label: str | None = None

    def __str__(self) -> str:
        text = f"model {self.model!r}"
        if self.version is not None:
            text += f" in version {self.version}"
        if self.label is not None:
            text += f" with label {self.label!r}"
        return text


class Refusal(Exception):
    """A request that got no answer.

    Args:
      code: gRPC's name of the reason, such as `"NOT_FOUND"`, also over REST.
      detail: The message of the server or the network.
    """

    def __init__(self, code: str, detail: str):
        super().__init__(detail)
        self.code = code
        self.detail = detail


class Transport(Protocol):
    """A way to send requests to the signatures of a model."""

    def ask(
        self, signature: str, inputs: Mapping[str, np.ndarray], seconds: float
    ) -> dict[str, np.ndarray]:
        """Sends inputs and returns outputs, arrays by name, not yet checked against the inputs.

        Args:
          signature: Name of the signature.
          inputs: Arrays (B, …) by name; bytes are objects.
          seconds: Time for everything, including all retries.

        Raises:
          Refusal: The server refuses, does not answer in that time, or answers with more than
            `MAX_REPLY` bytes or what is not an answer.
        """

    def close(self) -> None:
        """Closes the connection."""
