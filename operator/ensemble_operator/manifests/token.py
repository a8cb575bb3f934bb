"""The token with which the shards of an ensemble know each other."""

from __future__ import annotations

import secrets

from ensemble_operator.manifests import labels
from ensemble_operator.manifests.names import token_name
from ensemble_operator.manifests.objects import Object, Owner

TOKEN_FOLDER = "/etc/ensemble-token"  # noqa: S105  # a path
TOKEN_KEY = "token"  # noqa: S105  # the name of a key
TOKEN_FILE = f"{TOKEN_FOLDER}/{TOKEN_KEY}"


def token_secret(owner: Owner) -> Object:
    """A Secret with a new token: to be created where there is none yet, and then left alone.

    The one builder whose result is not the same twice; pods that run would not know another token.
    """
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": owner.metadata(token_name(owner.name), labels.common(owner.name)),
        "type": "Opaque",
        "immutable": True,
        "stringData": {TOKEN_KEY: secrets.token_urlsafe(32)},
    }
