"""`helm test`: serves a model that doubles its input on a CPU, through the operator, and reads a prediction.

Runs in the operator's image as one pod, which also hands out the model over HTTP.
"""

import functools
import http.server
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request

from kubernetes import client, config

NAMESPACE = os.environ["NAMESPACE"]
NAME = os.environ["ENSEMBLE"]
SECONDS = float(os.environ["SECONDS"])
ROWS = [[1.0, 2.0, 3.0, 4.0], [0.5, 0.0, -1.0, 8.0]]
KIND = {"group": "ensembles.dev", "version": "v1alpha1", "namespace": NAMESPACE, "plural": "inferenceensembles"}


def main():
    config.load_incluster_config()
    ensembles = client.CustomObjectsApi()
    hand_out_model()
    member = {"model": {"uri": os.environ["MODEL_URI"], "sha256": os.environ["MODEL_SHA256"], "format": "ONNX"}}
    ensemble = {
        "apiVersion": "ensembles.dev/v1alpha1",
        "kind": "InferenceEnsemble",
        "metadata": {"name": NAME},
        "spec": {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [4]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [4]}],
            "members": [{"name": name, "batchSizes": [4], **member} for name in ("one", "two")],
            "combination": {"rule": "Mean", "predictions": "Values"},
            "devices": {"kinds": ["CPU"], "max": 1},
        },
    }
    remove(ensembles)
    ensembles.create_namespaced_custom_object(**KIND, body=ensemble)
    try:
        deadline = time.monotonic() + SECONDS
        wait_until_ready(ensembles, deadline)
        answer = predict(deadline)
        expected = [2 * value for row in ROWS for value in row]
        print(f"predicted {answer}, expected {expected}", flush=True)
        return 0 if answer == expected else 1
    finally:
        remove(ensembles)


def hand_out_model():
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory="/model")
    server = http.server.ThreadingHTTPServer(("", 8080), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def wait_until_ready(ensembles, deadline):
    said = None
    while True:
        status = ensembles.get_namespaced_custom_object(**KIND, name=NAME).get("status", {})
        conditions = {c["type"]: c for c in status.get("conditions", [])}
        if conditions.get("Ready", {}).get("status") == "True":
            return
        now = {kind: f"{c['status']} {c['reason']}: {c['message']}" for kind, c in conditions.items()}
        if now != said:
            said = now
            print(json.dumps(now, indent=1), flush=True)
        if time.monotonic() > deadline:
            sys.exit(f"not ready after {SECONDS:g} s; the conditions above say why")
        time.sleep(1)


def predict(deadline):
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [len(ROWS), 4], "data": ROWS}]}
    request = urllib.request.Request(
        f"http://{NAME}.{NAMESPACE}.svc:8000/v2/models/{NAME}/infer",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return json.load(response)["outputs"][0]["data"]
        except urllib.error.URLError as error:  # the Service's way to the pod takes a moment
            if time.monotonic() > deadline:
                raise
            print(f"not yet: {error}", flush=True)
            time.sleep(0.5)


def remove(ensembles):
    """Delete what an earlier run left, and wait until it is gone."""
    try:
        ensembles.delete_namespaced_custom_object(**KIND, name=NAME)
        while True:
            ensembles.get_namespaced_custom_object(**KIND, name=NAME)
            time.sleep(0.2)
    except client.ApiException as error:
        if error.status != 404:
            raise


sys.exit(main())
