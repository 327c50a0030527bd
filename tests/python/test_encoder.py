"""The text encoder, which is a gRPC service of its own that anyone may call."""

import os
import struct

import grpc
import pytest
from reflected import REFLECTION_VERSIONS, Client, Reflection, violations

EMBED = "muse.internal.v1.TextEncoder/Embed"
F32 = 1


@pytest.fixture(scope="module")
def encoder():
    endpoints = os.environ.get("MUSE_ENCODER_ENDPOINTS")
    if not endpoints:
        pytest.fail("MUSE_ENCODER_ENDPOINTS is not set: `musectl up -- COMMAND` sets it", pytrace=False)
    with grpc.insecure_channel(endpoints.split(",")[0].removeprefix("http://")) as channel:
        yield Client(channel)


def values(embedding) -> tuple[float, ...]:
    tensor = embedding.embedding
    assert tensor.element_type == F32 and len(tensor.data) == 4 * tensor.shape[0] * tensor.shape[1]
    return struct.unpack(f"<{len(tensor.data) // 4}f", tensor.data)


@pytest.mark.parametrize("version", REFLECTION_VERSIONS)
def test_reflection_lists_the_encoder_and_its_health(encoder, version):
    listed = set(Reflection(encoder.channel, version).services())
    assert {"muse.internal.v1.TextEncoder", "grpc.health.v1.Health"} <= listed, listed
    assert encoder.call("grpc.health.v1.Health/Check", {"service": ""}).status == 1


def test_texts_are_embedded_in_order_at_the_manifest_s_width(encoder, prompt, manifest):
    answer = encoder.call(EMBED, {"texts": [prompt, "", "blue"]})
    first, empty, blue = answer.embeddings
    for embedding in (first, empty, blue):
        assert list(embedding.embedding.shape) == [embedding.tokens, manifest["text"]["width"]]
    assert empty.tokens == 1, "the end token alone"
    assert first.tokens > blue.tokens > empty.tokens
    assert all(number == number for number in values(first)), "no NaN"


def test_a_text_has_the_same_embedding_alone_among_others_and_from_the_cache(encoder, prompt):
    [alone] = encoder.call(EMBED, {"texts": [f"{prompt} above"]}).embeddings
    among = encoder.call(EMBED, {"texts": ["blue", f"{prompt} above", "red"]}).embeddings[1]
    assert among.cached and among.embedding == alone.embedding
    once, twice = encoder.call(EMBED, {"texts": [f"{prompt} below"] * 2}).embeddings
    assert once.embedding == twice.embedding


def test_a_text_of_too_many_tokens_is_refused_by_its_place(encoder, manifest):
    with pytest.raises(grpc.RpcError) as refusal:
        encoder.call(EMBED, {"texts": ["blue", "a b " * manifest["text"]["max_length"]]})
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    found = violations(refusal.value)
    assert list(found) == ["texts[1]"] and str(manifest["text"]["max_length"]) in found["texts[1]"], found


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"texts": []}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"texts": ["x"] * 10_000}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"texts": ["x" * 900_000]}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"texts": ["x"], "model": "no-such-model"}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"texts": ["x"], "bundle_digest": "00" * 32}, grpc.StatusCode.FAILED_PRECONDITION),
        ({"texts": ["x" * 20_000_000]}, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["no text", "10,000 texts", "a text of 900 kB", "another model", "another bundle", "a message of 20 MB"],
)
def test_what_cannot_be_embedded_is_refused(encoder, request_, code):
    with pytest.raises(grpc.RpcError) as refusal:
        encoder.call(EMBED, request_)
    assert refusal.value.code() == code, refusal.value
