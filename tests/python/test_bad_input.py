"""What the gateway refuses: with which status, and with which words about which field."""

import grpc
import pytest
from reflected import violations

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
NOBODY = "01932c07-a1b0-7c3e-8f21-5b8f6c1d0000"
TASK = "request.text_to_image"

# name: change of a good request, the field that is named, a word of the reason
BAD_REQUESTS = {
    "empty prompt": ({"text_to_image": {"prompt": ""}}, f"{TASK}.prompt", "empty"),
    "blank prompt": ({"text_to_image": {"prompt": " \t\n"}}, f"{TASK}.prompt", "empty"),
    "prompt of 10,000 characters": ({"text_to_image": {"prompt": "x" * 10_000}}, f"{TASK}.prompt", "10000"),
    "long negative prompt": (
        {"text_to_image": {"prompt": "x", "negative_prompt": "x" * 10_000}},
        f"{TASK}.negative_prompt",
        "10000",
    ),
    "count 0": ({"text_to_image": {"prompt": "x", "count": 0}}, f"{TASK}.count", "not 0"),
    "count 1,000,000": ({"text_to_image": {"prompt": "x", "count": 1_000_000}}, f"{TASK}.count", "1000000"),
    "no task": ({"text_to_image": None}, TASK, "required"),
    "0 base steps": ({"base": {"steps": 0}}, "request.base.steps", "not 0"),
    "0 superres steps": ({"superres": {"steps": 0}}, "request.superres.steps", "not 0"),
    "4,000,000,000 steps": ({"base": {"steps": 4_000_000_000}}, "request.base.steps", "4000000000"),
    "guidance NaN": ({"base": {"guidance": "NaN"}}, "request.base.guidance", "NaN"),
    "guidance infinite": ({"superres": {"guidance": "Infinity"}}, "request.superres.guidance", "inf"),
    "guidance below 0": ({"base": {"guidance": -1}}, "request.base.guidance", "-1"),
    "temperature NaN": ({"base": {"temperature": "NaN"}}, "request.base.temperature", "NaN"),
    "choice temperature below 0": ({"base": {"choice_temperature": -0.5}}, "request.base.choice_temperature", "-0.5"),
    "unknown mask schedule": ({"base": {"mask_schedule": 77}}, "request.base.mask_schedule", "77"),
    "unknown format": ({"format": 99}, "request.format", "99"),
    "unknown priority": ({"priority": 42}, "request.priority", "42"),
    "a second wide": ({"width": 1}, "request.width", "not 1"),
    "too tall": ({"height": 100_000}, "request.height", "100000"),
    "timeout 0": ({"timeout": "0s"}, "request.timeout", "between"),
    "timeout below 0": ({"timeout": "-5s"}, "request.timeout", "between"),
    "timeout of a century": ({"timeout": "3153600000s"}, "request.timeout", "between"),
    "long idempotency key": ({"idempotency_key": "k" * 1000}, "request.idempotency_key", "1000"),
    "too many labels": ({"labels": {str(n): "" for n in range(100)}}, "request.labels", "100"),
    "long label": ({"labels": {"name": "x" * 5000}}, "request.labels[name]", "at most"),
}
SUBMITTERS = {
    "Generate": lambda client, request: list(client.call("muse.v1.Generation/Generate", {"request": request})),
    "SubmitJob": lambda client, request: client.call("muse.v1.Generation/SubmitJob", {"request": request}),
}


def changed(change: dict) -> dict:
    request = {"text_to_image": {"prompt": "a red star"}, **change}
    return {key: value for key, value in request.items() if value is not None}


@pytest.mark.parametrize("submit", SUBMITTERS.values(), ids=SUBMITTERS.keys())
@pytest.mark.parametrize(("change", "field", "word"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_a_bad_field_is_refused_by_name_and_with_the_reason(client, stages, submit, change, field, word):
    # A model without that stage refuses its settings whole.
    if "superres" in change and "STAGE_SUPERRES" not in stages:
        word = "no such stage"
        change = {"superres": {"steps": 1}}
        field = "request.superres"
    with pytest.raises(grpc.RpcError) as refusal:
        submit(client, changed(change))
    error = refusal.value
    assert error.code() == INVALID, error
    found = violations(error)
    assert list(found) == [field], f"{found}; {error.details()}"
    assert word in found[field], found
    assert field in error.details(), "clients that read no details see the field in the message"


def test_all_bad_fields_are_told_at_once(client):
    bad = {"text_to_image": {"prompt": "", "count": 0}, "base": {"steps": 0, "guidance": "NaN"}, "width": 1}
    with pytest.raises(grpc.RpcError) as refusal:
        client.call("muse.v1.Generation/SubmitJob", {"request": bad})
    assert set(violations(refusal.value)) == {
        f"{TASK}.prompt", f"{TASK}.count", "request.base.steps", "request.base.guidance", "request.width"
    }  # fmt: skip


def test_a_missing_request_is_refused(client):
    with pytest.raises(grpc.RpcError) as refusal:
        client.call("muse.v1.Generation/SubmitJob", {})
    assert refusal.value.code() == INVALID
    assert list(violations(refusal.value)) == ["request"]


@pytest.mark.parametrize("submit", SUBMITTERS.values(), ids=SUBMITTERS.keys())
def test_an_unknown_model_is_refused_and_the_known_ones_are_named(client, model, submit):
    with pytest.raises(grpc.RpcError) as refusal:
        submit(client, changed({"model": "no-such-model"}))
    assert refusal.value.code() == INVALID, refusal.value
    found = violations(refusal.value)
    assert list(found) == ["request.model"]
    assert "no-such-model" in found["request.model"] and model.name in found["request.model"], found


OF_A_JOB = {
    "GetJob": lambda client, job: client.call("muse.v1.Generation/GetJob", {"job_id": job}),
    "CancelJob": lambda client, job: client.call("muse.v1.Generation/CancelJob", {"job_id": job}),
    "GetImage": lambda client, job: client.call("muse.v1.Generation/GetImage", {"job_id": job}),
    "WatchJob": lambda client, job: list(client.call("muse.v1.Generation/WatchJob", {"job_id": job}, timeout=10)),
}


@pytest.mark.parametrize("ask", OF_A_JOB.values(), ids=OF_A_JOB.keys())
def test_an_unknown_job_is_not_found(client, ask):
    with pytest.raises(grpc.RpcError) as refusal:
        ask(client, NOBODY)
    assert refusal.value.code() == NOT_FOUND, refusal.value
    assert "no such job" in refusal.value.details()


@pytest.mark.parametrize("ask", OF_A_JOB.values(), ids=OF_A_JOB.keys())
@pytest.mark.parametrize(
    "job",
    ["", "7", "not-a-job", "x" * 20_000, "01932c07-a1b0-4c3e-8f21-5b8f6c1d0000", "*", "..", "01932c07%00", "\u202e\u0000"],
    ids=["empty", "short", "words", "long", "UUID of another version", "star", "dots", "percent", "controls"],
)
def test_what_is_no_job_id_is_refused_as_a_field(client, ask, job):
    with pytest.raises(grpc.RpcError) as refusal:
        ask(client, job)
    assert refusal.value.code() == INVALID, refusal.value
    assert list(violations(refusal.value)) == ["job_id"]
    assert len(refusal.value.details()) < 500, "a long value is not sent back"


def test_a_picture_that_a_job_does_not_have_is_not_found(client, run, prompt):
    job = run({"text_to_image": {"prompt": prompt}}, omit_images=True)[-1][1]
    with pytest.raises(grpc.RpcError) as refusal:
        client.call("muse.v1.Generation/GetImage", {"job_id": job.id, "index": 1})
    assert refusal.value.code() == NOT_FOUND, refusal.value


@pytest.mark.parametrize("token", ["x", "!", "AAAA" * 100, "-1"])
def test_a_page_token_that_was_not_given_out_is_refused(client, token):
    with pytest.raises(grpc.RpcError) as refusal:
        client.call("muse.v1.Generation/ListJobs", {"page_token": token})
    assert refusal.value.code() == INVALID, refusal.value
    assert list(violations(refusal.value)) == ["page_token"]


def test_a_page_larger_than_the_limit_or_an_unknown_state_is_refused_or_cut(client):
    answer = client.call("muse.v1.Generation/ListJobs", {"page_size": 4_000_000_000})
    assert len(answer.jobs) <= 1000
    with pytest.raises(grpc.RpcError) as refusal:
        client.call("muse.v1.Generation/ListJobs", {"states": [99]})
    assert refusal.value.code() == INVALID


def test_nothing_that_was_refused_became_a_job(client, prompt):
    jobs = client.call("muse.v1.Generation/ListJobs", {"page_size": 200}).jobs
    assert all(job.request.text_to_image.prompt.strip() for job in jobs)
    assert all(0 < job.request.text_to_image.count <= 1000 for job in jobs)
