"""The gateway through grpcurl: another language's client (Go), by reflection, with JSON."""

import base64
import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from conftest import PATIENCE

GRPCURL = shutil.which("grpcurl", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("grpcurl")


@pytest.fixture
def grpcurl(address):
    assert GRPCURL, "grpcurl is missing: scripts/fetch_deps.py python installs it"

    def run(*arguments: str, data: dict | None = None) -> subprocess.CompletedProcess:
        options = ["-plaintext", "-max-time", str(PATIENCE)]
        if data is not None:
            options += ["-d", json.dumps(data)]
        return subprocess.run([GRPCURL, *options, address, *arguments], capture_output=True, text=True)

    return run


def objects(text: str) -> list[dict]:
    """The JSON objects that follow each other in a stream's output."""
    decoder, found, position = json.JSONDecoder(), [], 0
    while text[position:].strip():
        position += len(text[position:]) - len(text[position:].lstrip())
        value, position = decoder.raw_decode(text, position)
        found.append(value)
    return found


def test_services_are_listed(grpcurl):
    answer = grpcurl("list")
    assert answer.returncode == 0, answer.stderr
    assert {"muse.v1.Generation", "muse.v1.Models", "muse.v1.Admin"} <= set(answer.stdout.split())


def test_a_method_is_described(grpcurl):
    answer = grpcurl("describe", "muse.v1.Generation.Generate")
    assert answer.returncode == 0, answer.stderr
    assert "returns ( stream .muse.v1.GenerateResponse )" in answer.stdout


def test_a_picture_is_streamed(grpcurl, prompt, stages):
    answer = grpcurl("muse.v1.Generation/Generate", data={"request": {"textToImage": {"prompt": prompt}, "seed": "7"}})
    assert answer.returncode == 0, answer.stderr
    events = objects(answer.stdout)
    assert events[-1]["job"]["state"] == "JOB_STATE_SUCCEEDED"
    told = [event["job"]["progress"] if "job" in event else event.get("progress", {}) for event in events]
    assert {progress["stage"] for progress in told if progress} == set(stages), told
    [image] = [event["image"] for event in events if "image" in event]
    assert base64.b64decode(image["data"]).startswith(b"\x89PNG")


def test_a_refusal_names_the_field(grpcurl):
    answer = grpcurl("muse.v1.Generation/SubmitJob", data={"request": {"textToImage": {"prompt": ""}}})
    assert answer.returncode != 0
    assert "InvalidArgument" in answer.stderr and "request.text_to_image.prompt" in answer.stderr, answer.stderr
