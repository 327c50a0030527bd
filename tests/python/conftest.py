"""What the foreign client's tests share: the cluster that MUSE_ENDPOINT names.

    musectl up --bundle tests/bundles/tiny --set worker.hub.progress_interval_ms=1 --set gateway.watch.settle_ms=0 \\
        -- python -m pytest tests/python

They work on any bundle that makes pictures; nothing in them knows a model's size. A tiny model's whole stage is shorter than
the pause that workers make between two reports of progress, and than that in which a gateway tells changes as one: hence the
settings.
"""

import os
import pathlib
import tomllib
from urllib.parse import urlsplit

import grpc
import pytest
from reflected import Client

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Short, so that every test bundle's text length has room for it.
PROMPT = "a red star"
# A picture takes milliseconds on the tiny bundle and seconds on a real one; this is when a test gives up on a cluster.
PATIENCE = 120


@pytest.fixture(scope="session")
def address() -> str:
    """`host:port` of the gateway."""
    endpoint = os.environ.get("MUSE_ENDPOINT")
    if not endpoint:
        pytest.fail("MUSE_ENDPOINT is not set: run `musectl up -- python -m pytest tests/python`", pytrace=False)
    return urlsplit(endpoint).netloc if "//" in endpoint else endpoint


@pytest.fixture(scope="session")
def channel(address):
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        yield channel


@pytest.fixture(scope="session")
def client(channel) -> Client:
    return Client(channel)


@pytest.fixture(scope="session")
def model(client):
    """The model that the cluster serves by default, as it describes itself."""
    answer = client.call("muse.v1.Models/ListModels")
    served = {model.name: model for model in answer.models}
    name = answer.default_model or next(iter(served))
    return served[name]


@pytest.fixture(scope="session")
def manifest(model) -> dict:
    """The served bundle's own manifest, which says what the pictures must be."""
    for file in [*ROOT.glob("tests/bundles/*/bundle.toml"), *ROOT.glob("bundles/*/bundle.toml")]:
        manifest = tomllib.loads(file.read_text())
        if manifest["model"]["name"] == model.name and manifest["model"]["version"] == model.version:
            return manifest
    pytest.fail(f"no bundle of this repository is the {model.name} {model.version} that is served", pytrace=False)


@pytest.fixture(scope="session")
def stages(manifest) -> list[str]:
    """The stages that a job passes, as the API calls them."""
    return [f"STAGE_{name.upper()}" for name in ("base", "superres") if name in manifest]


@pytest.fixture
def prompt() -> str:
    return PROMPT


@pytest.fixture
def run(client):
    """Generates, and returns every event as (kind, message)."""

    def generate(request: dict, omit_images: bool = False) -> list[tuple[str, object]]:
        call = client.call(
            "muse.v1.Generation/Generate", {"request": request, "omit_images": omit_images}, timeout=PATIENCE
        )
        return [(event.WhichOneof("event"), getattr(event, event.WhichOneof("event"))) for event in call]

    return generate
