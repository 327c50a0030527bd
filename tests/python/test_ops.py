"""The operators' port of every part: probes and metrics over HTTP."""

import os
import urllib.error
import urllib.request

import pytest


@pytest.fixture(scope="module")
def parts() -> dict[str, str]:
    """Address of each part's ops port."""
    endpoints = os.environ.get("MUSE_OPS_ENDPOINTS")
    if not endpoints:
        pytest.fail("MUSE_OPS_ENDPOINTS is not set: `musectl up -- COMMAND` sets it", pytrace=False)
    return dict(entry.split("=", 1) for entry in endpoints.split(","))


def get(address: str, path: str) -> str:
    with urllib.request.urlopen(f"{address}{path}", timeout=10) as answer:
        assert answer.status == 200
        return answer.read().decode()


def test_every_part_is_alive_and_ready(parts):
    assert {name.split("-")[0] for name in parts} >= {"gateway", "encoder"}, parts
    for address in parts.values():
        get(address, "/livez")
        get(address, "/readyz")


def test_metrics_tell_what_was_done_and_nobody_s_prompt(parts, run, prompt):
    secret = f"{prompt} xylophone"
    run({"text_to_image": {"prompt": secret}, "labels": {"name": "xylophone"}})
    texts = {name: get(address, "/metrics") for name, address in parts.items()}
    assert all("xylophone" not in text for text in texts.values()), "prompts are not for metrics"
    together = "\n".join(texts.values())
    for metric in (
        "muse_requests_total",
        "muse_queue_jobs",
        "muse_queue_oldest_seconds",
        "muse_job_seconds",
        "muse_pass_seconds",
        "muse_batch_rows",
        "muse_rows_inflight",
        "muse_embed_cache_total",
    ):
        assert f"\n{metric}" in together, f"{metric} is missing"
    assert 'method="/muse.v1.Generation/Generate"' in together or 'method="muse.v1.Generation/Generate"' in together


def test_other_paths_are_not_found(parts):
    for address in parts.values():
        with pytest.raises(urllib.error.HTTPError) as refusal:
            get(address, "/../../etc/passwd")
        assert refusal.value.code == 404
