"""A client of the Open Inference Protocol in forty lines: binary tensors over HTTP, by the standard library alone."""

from __future__ import annotations

import json
from http.client import HTTPConnection

import numpy as np
from numpy.typing import NDArray

LENGTH_OF_JSON = "Inference-Header-Content-Length"


def infer(address: tuple[str, int], ensemble: str, image: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Send images (rows, 64); answer the ensemble's output, and each member's own as `<output>@<member>`."""
    tensor = image.astype("<f4").tobytes()
    request = {
        "inputs": [
            {
                "name": "image",
                "datatype": "FP32",
                "shape": list(image.shape),
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "parameters": {"binary_data_output": True, "return_members": True},
    }
    header = json.dumps(request).encode()
    connection = HTTPConnection(*address, timeout=60)
    try:
        headers = {LENGTH_OF_JSON: str(len(header)), "Content-Type": "application/octet-stream"}
        connection.request("POST", f"/v2/models/{ensemble}/infer", header + tensor, headers)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"{response.status} {response.reason}: {body.decode(errors='replace')}")
    return _tensors(body, int(response.headers[LENGTH_OF_JSON]))


def _tensors(body: bytes, length_of_json: int) -> dict[str, NDArray[np.float32]]:
    """Cut the answer's tensors out of what follows its JSON, in the order in which the JSON names them."""
    tensors, start = {}, length_of_json
    for output in json.loads(body[:length_of_json])["outputs"]:
        end = start + output["parameters"]["binary_data_size"]
        tensors[output["name"]] = np.frombuffer(body[start:end], "<f4").reshape(output["shape"])
        start = end
    return tensors
