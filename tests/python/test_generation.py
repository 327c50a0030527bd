"""From prompt to picture, as a foreign client does it."""

import hashlib
import struct
import time
import uuid

import grpc
import pytest
from conftest import PATIENCE
from google.protobuf.descriptor import EnumDescriptor

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"


def enum(message, field: str) -> EnumDescriptor:
    return message.DESCRIPTOR.fields_by_name[field].enum_type


def name(message, field: str) -> str:
    """The name of an enum field's value, such as JOB_STATE_SUCCEEDED."""
    return enum(message, field).values_by_number[getattr(message, field)].name


def request(prompt: str, **more) -> dict:
    task = {key: more.pop(key) for key in ("negative_prompt", "count") if key in more}
    return {"text_to_image": {"prompt": prompt, **task}, "seed": 7, **more}


def png_size(data: bytes) -> tuple[int, int]:
    """Width and height, from the header that every PNG begins with."""
    assert data[:8] == PNG_SIGNATURE, data[:16]
    assert data[12:16] == b"IHDR"
    return struct.unpack(">II", data[16:24])


def png_texts(data: bytes) -> dict[str, str]:
    """The texts in a PNG's tEXt and iTXt chunks."""
    texts, position = {}, 8
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        if kind == b"tEXt":
            key, text = body.split(b"\0", 1)
            texts[key.decode("latin-1")] = text.decode("latin-1")
        if kind == b"iTXt":
            key, rest = body.split(b"\0", 1)
            texts[key.decode("latin-1")] = rest[2:].split(b"\0", 2)[2].decode()
        position += length + 12
    return texts


def pictures(events) -> list:
    return [message for kind, message in events if kind == "image"]


def progress_by_stage(events) -> dict[str, list[tuple[int, int]]]:
    """(step, of) in the order told, by stage: events of their own, and those that come with the job's other news."""
    told = [message if kind == "progress" else message.progress for kind, message in events if kind != "image"]
    steps = {}
    for progress in told:
        steps.setdefault(name(progress, "stage"), []).append((progress.step, progress.of))
    return steps


def slow(prompt: str, stages: list[str]) -> dict:
    """A request that takes as long as one may."""
    sampling = {stage.removeprefix("STAGE_").lower(): {"steps": 256, "guidance": 3} for stage in stages}
    return request(prompt, count=16, **sampling)


def test_progress_is_streamed_step_by_step_while_a_stage_runs(run, prompt, stages):
    # A tiny bundle may be done before a step is told, so it gets much to do, and several chances.
    for seed in range(10):
        events = run({**slow(prompt, stages), "seed": seed}, omit_images=True)
        streamed = [message for kind, message in events if kind == "progress"]
        halfway = {name(progress, "stage") for progress in streamed if 0 < progress.step < progress.of}
        if halfway == set(stages):
            break
    assert halfway == set(stages), f"steps in between were told of {halfway} alone: {progress_by_stage(events)}"
    for stage, seen in progress_by_stage(events).items():
        assert [step for step, _ in seen] == sorted(step for step, _ in seen), f"{stage} goes back: {seen}"


def test_generate_streams_acceptance_progress_of_every_stage_the_picture_and_the_end(run, prompt, model, manifest, stages):
    events = run(request(prompt))
    kinds = [kind for kind, _ in events]

    first, last = events[0], events[-1]
    assert first[0] == "job" and uuid.UUID(first[1].id).version == 7, events
    assert name(first[1], "state") in ("JOB_STATE_QUEUED", "JOB_STATE_RUNNING")
    accepted = first[1].request
    assert accepted.model == model.name and accepted.seed == 7 and accepted.text_to_image.count == 1
    assert accepted.base.steps == manifest["base"]["defaults"]["steps"], "defaults are filled in"

    steps = progress_by_stage(events)
    assert list(steps) == stages, f"progress of {list(steps)}, not of {stages}: {kinds}"
    for stage, seen in steps.items():
        of = manifest[stage.removeprefix("STAGE_").lower()]["defaults"]["steps"]
        assert all(0 <= step <= total and total == of for step, total in seen), f"{stage}: {seen}, of {of}"
        assert [step for step, _ in seen] == sorted(step for step, _ in seen), f"{stage} goes back: {seen}"

    assert last[0] == "job" and name(last[1], "state") == "JOB_STATE_SUCCEEDED", events
    assert kinds.count("image") == 1 and kinds[-2] == "image", kinds
    [picture] = pictures(events)
    height, width = manifest["superres" if "superres" in manifest else "base"]["image_size"]
    assert png_size(picture.data) == (width, height) == (picture.info.width, picture.info.height)
    assert picture.info.size_bytes == len(picture.data)
    assert picture.info.sha256 == hashlib.sha256(picture.data).hexdigest()
    assert [info.sha256 for info in last[1].images] == [picture.info.sha256]
    assert [name(timing, "stage") for timing in last[1].timings] == stages


def test_a_picture_says_that_it_was_generated_by_what_and_from_which_seed(run, prompt, model):
    [picture] = pictures(run(request(prompt)))
    told = " ".join(f"{key}={text}" for key, text in png_texts(picture.data).items())
    assert "AI" in told and model.name in told and "7" in told, told


def test_get_image_gives_the_same_bytes_later(run, client, prompt):
    events = run(request(prompt, count=2))
    job = events[-1][1]
    assert [picture.info.index for picture in pictures(events)] == [0, 1]
    for picture in pictures(events):
        again = client.call("muse.v1.Generation/GetImage", {"job_id": job.id, "index": picture.info.index}).image
        assert again.data == picture.data and again.info == picture.info


def test_pictures_can_be_left_out_of_the_stream_and_are_still_listed(run, prompt):
    events = run(request(prompt), omit_images=True)
    assert not pictures(events)
    assert len(events[-1][1].images) == 1


def test_the_same_request_gives_the_same_picture_and_another_seed_another(run, prompt):
    once, again = (pictures(run(request(prompt)))[0].data for _ in range(2))
    assert once == again
    assert pictures(run({**request(prompt), "seed": 8}))[0].data != once


def test_a_picture_does_not_depend_on_how_many_are_asked_for(run, prompt):
    alone = pictures(run(request(prompt)))
    among = pictures(run(request(prompt, count=3)))
    assert among[0].data == alone[0].data
    assert len({picture.data for picture in among}) == 3, "three pictures of one prompt differ"


def test_every_setting_of_both_stages_is_taken_and_reported(run, prompt, stages):
    sampling = {
        "steps": 3,
        "guidance": 1.5,
        "guidance_schedule": "GUIDANCE_SCHEDULE_CONSTANT",
        "temperature": 0.75,
        "top_k": 9,
        "choice_temperature": 2.0,
        "mask_schedule": "MASK_SCHEDULE_ARCCOS",
        "scheduler": "SCHEDULER_HALTON",
    }
    asked = {stage.removeprefix("STAGE_").lower(): sampling for stage in stages}
    events = run(request(prompt, negative_prompt="blue", **asked, labels={"for": "a test"}, priority="PRIORITY_HIGH"))
    job = events[-1][1]
    assert name(job, "state") == "JOB_STATE_SUCCEEDED", job
    for stage in asked:
        told = getattr(job.request, stage)
        assert (told.steps, told.guidance, told.temperature, told.top_k, told.choice_temperature) == (3, 1.5, 0.75, 9, 2.0)
        assert name(told, "mask_schedule") == "MASK_SCHEDULE_ARCCOS" and name(told, "scheduler") == "SCHEDULER_HALTON"
    assert job.request.labels["for"] == "a test"
    assert {of for seen in progress_by_stage(events).values() for _, of in seen} == {3}


@pytest.mark.parametrize(
    ("format", "signature"),
    [
        ("IMAGE_FORMAT_PNG", lambda data: data.startswith(PNG_SIGNATURE)),
        ("IMAGE_FORMAT_JPEG", lambda data: data.startswith(JPEG_SIGNATURE)),
        ("IMAGE_FORMAT_WEBP", lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP"),
    ],
)
def test_every_image_format_can_be_had(run, prompt, format, signature):
    [picture] = pictures(run(request(prompt, format=format)))
    assert name(picture.info, "format") == format
    assert signature(picture.data), picture.data[:16]


def test_a_job_without_a_seed_reports_the_one_that_was_chosen(run, prompt):
    wanted = {key: value for key, value in request(prompt).items() if key != "seed"}
    events = run(wanted)
    chosen = events[-1][1].request
    assert chosen.HasField("seed")
    again = run({**wanted, "seed": str(chosen.seed)})
    assert pictures(again)[0].data == pictures(events)[0].data


# === jobs ===


def watch(client, job_id: str, after: int = 0) -> list:
    call = client.call(
        "muse.v1.Generation/WatchJob", {"job_id": job_id, "after_version": str(after)}, timeout=PATIENCE
    )
    return list(call)


def test_a_submitted_job_is_watched_to_its_end_and_the_watch_can_be_taken_up_again(client, prompt):
    job = client.call("muse.v1.Generation/SubmitJob", {"request": request(prompt)}).job
    seen = [event.job for event in watch(client, job.id) if event.WhichOneof("event") == "job"]
    versions = [event.version for event in seen]
    assert versions == sorted(versions), versions
    assert name(seen[-1], "state") == "JOB_STATE_SUCCEEDED"
    # Whoever missed only the end gets the end alone.
    rest = [event.job for event in watch(client, job.id, seen[-1].version - 1) if event.WhichOneof("event") == "job"]
    assert [event.version for event in rest] == [seen[-1].version]
    # Whoever has seen all of it is told so by a stream that ends.
    assert len(watch(client, job.id, seen[-1].version)) <= 1
    assert client.call("muse.v1.Generation/GetJob", {"job_id": job.id}).job == seen[-1]


def test_jobs_are_listed_newest_first_page_by_page(client, run, prompt):
    made = [run(request(prompt), omit_images=True)[-1][1].id for _ in range(3)]
    listed, token = [], ""
    while True:
        page = client.call("muse.v1.Generation/ListJobs", {"page_size": 2, "page_token": token})
        assert len(page.jobs) <= 2
        listed += [job.id for job in page.jobs]
        token = page.next_page_token
        if not token or set(made) <= set(listed):
            break
    assert [job for job in listed if job in made] == made[::-1], listed
    assert len(listed) == len(set(listed)), "a job is on two pages"


def test_jobs_can_be_listed_by_state(client, run, prompt):
    made = run(request(prompt), omit_images=True)[-1][1].id
    done = client.call("muse.v1.Generation/ListJobs", {"states": ["JOB_STATE_SUCCEEDED"]}).jobs
    assert made in [job.id for job in done]
    assert {name(job, "state") for job in done} == {"JOB_STATE_SUCCEEDED"}


def test_a_cancelled_job_ends_as_cancelled_and_a_finished_one_stays_finished(client, run, prompt, stages):
    for _ in range(20):
        job = client.call("muse.v1.Generation/SubmitJob", {"request": slow(prompt, stages)}).job
        answer = client.call("muse.v1.Generation/CancelJob", {"job_id": job.id}).job
        if name(answer, "state") != "JOB_STATE_SUCCEEDED":
            break
    assert name(answer, "state") == "JOB_STATE_CANCELLED", answer
    last = watch(client, job.id)[-1].job
    assert name(last, "state") == "JOB_STATE_CANCELLED" and not last.images
    again = client.call("muse.v1.Generation/CancelJob", {"job_id": job.id}).job
    assert again.version == last.version, "cancelling twice changes nothing"

    finished = run(request(prompt), omit_images=True)[-1][1]
    kept = client.call("muse.v1.Generation/CancelJob", {"job_id": finished.id}).job
    assert name(kept, "state") == "JOB_STATE_SUCCEEDED" and kept.version == finished.version


def test_a_key_used_twice_gives_the_same_job_and_refuses_another_request(client, prompt):
    key = str(uuid.uuid4())
    first, second = (
        client.call("muse.v1.Generation/SubmitJob", {"request": request(prompt, idempotency_key=key)}) for _ in range(2)
    )
    assert first.job.id == second.job.id
    assert (first.already_existed, second.already_existed) == (False, True)
    with pytest.raises(grpc.RpcError) as refusal:
        client.call("muse.v1.Generation/SubmitJob", {"request": request(prompt, count=2, idempotency_key=key)})
    assert refusal.value.code() == grpc.StatusCode.ALREADY_EXISTS


def test_a_client_that_goes_away_does_not_stop_its_job(client, prompt):
    call = client.call("muse.v1.Generation/Generate", {"request": request(prompt)}, timeout=PATIENCE)
    job = next(iter(call)).job
    call.cancel()
    assert name(watch(client, job.id)[-1].job, "state") == "JOB_STATE_SUCCEEDED"


def test_a_prompt_with_more_tokens_than_the_model_takes_fails_with_that_reason(client, run, model):
    # Within the gateway's limit of characters, but each word is at least one token.
    events = run(request("a b " * model.max_text_tokens))
    job = events[-1][1]
    assert name(job, "state") == "JOB_STATE_FAILED", job
    assert name(job.error, "reason") == "JOB_ERROR_REASON_INVALID_REQUEST"
    assert str(model.max_text_tokens) in job.error.message and "token" in job.error.message, job.error


def test_a_job_that_may_not_take_longer_is_given_up_at_its_deadline_or_done(client, prompt):
    begun = time.monotonic()
    job = client.call("muse.v1.Generation/SubmitJob", {"request": request(prompt, timeout="1s")}).job
    assert job.deadline.ToNanoseconds() - job.created_at.ToNanoseconds() == 1_000_000_000
    last = watch(client, job.id)[-1].job
    outcome = name(last, "state")
    assert outcome in ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED"), last
    if outcome == "JOB_STATE_FAILED":
        assert name(last.error, "reason") == "JOB_ERROR_REASON_DEADLINE_EXCEEDED"
    assert time.monotonic() - begun < PATIENCE
