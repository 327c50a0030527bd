"""Bytes that are no request. Whatever arrives on the port, the service stays up and serves the next caller."""

import os
import random
import socket
import struct

import grpc
import pytest

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = struct.pack(">I", 0)[1:] + b"\x04\x00" + struct.pack(">I", 0)


def frame(kind: int, flags: int, stream: int, body: bytes, length: int | None = None) -> bytes:
    """An HTTP/2 frame, whose length field may lie."""
    return struct.pack(">I", len(body) if length is None else length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


PAYLOADS = {
    "nothing": b"",
    "a line of text": b"hello\r\n",
    "an HTTP/1.1 request": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a TLS greeting": bytes.fromhex("16030100a5010000a10303") + bytes(range(150)),
    "a redis command": b"*1\r\n$8\r\nFLUSHALL\r\n",
    "64 KiB at random": random.Random(7).randbytes(65_536),
    "half a preface": HTTP2_PREFACE[:12],
    "a preface, then random bytes": HTTP2_PREFACE + random.Random(8).randbytes(4096),
    "a frame of 16 MiB that never comes": HTTP2_PREFACE + SETTINGS + frame(0, 0, 1, b"", length=0xFFFFFF),
    "headers that do not decompress": HTTP2_PREFACE + SETTINGS + frame(1, 4, 1, b"\xff" * 64),
    "data on a stream that was not opened": HTTP2_PREFACE + SETTINGS + frame(0, 1, 9, b"x" * 100),
    "a window of nothing": HTTP2_PREFACE + SETTINGS + frame(8, 0, 0, struct.pack(">I", 0)),
    "a thousand pings": HTTP2_PREFACE + SETTINGS + frame(6, 0, 0, b"12345678") * 1000,
    "a thousand settings": HTTP2_PREFACE + SETTINGS * 1000,
    "a stream reset that was never there": HTTP2_PREFACE + SETTINGS + frame(3, 0, 1, struct.pack(">I", 8)),
}


def send(address: str, payload: bytes) -> None:
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        try:
            connection.sendall(payload)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65_536):
                pass
        except OSError:
            pass  # To be hung up on is a fine answer, at any moment.


def assert_serves(address: str) -> None:
    """A new caller is served: not one whose connection was there before."""
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        answer = channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
    assert answer == b"\x08\x01", f"health says {answer!r}, not SERVING"


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_garbage_on_the_port_harms_nobody(address, payload):
    send(address, payload)
    assert_serves(address)


def test_many_connections_that_say_nothing_do_not_keep_others_out(address):
    host, port = address.rsplit(":", 1)
    silent = [socket.create_connection((host, int(port)), timeout=10) for _ in range(100)]
    try:
        assert_serves(address)
    finally:
        for connection in silent:
            connection.close()


@pytest.mark.parametrize("seed", range(20))
def test_messages_at_random_are_refused_as_the_client_s_fault_or_answered(address, channel, seed):
    data = random.Random(seed).randbytes(200)
    for method in ("SubmitJob", "GetJob", "ListJobs", "CancelJob", "GetImage"):
        try:
            channel.unary_unary(f"/muse.v1.Generation/{method}")(data, timeout=10)
        except grpc.RpcError as refusal:
            assert refusal.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), refusal
    assert_serves(address)


def test_text_that_is_no_utf_8_is_the_client_s_fault(channel):
    with pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary("/muse.v1.Generation/GetJob")(b"\x0a\x02\xff\xfe", timeout=10)
    assert refusal.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_larger_than_the_limit_is_refused(address, channel):
    with pytest.raises(grpc.RpcError) as refusal:
        # Field 1 of GetJobRequest, 1 MiB long.
        channel.unary_unary("/muse.v1.Generation/GetJob")(b"\x0a\x80\x80\x40" + b"x" * (1 << 20), timeout=10)
    assert refusal.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, refusal.value
    assert_serves(address)


def test_metadata_at_random_does_not_disturb(channel, address):
    metadata = [("traceparent", "00-zz"), ("x-junk-bin", os.urandom(100)), ("tracestate", "=" * 1000)]
    channel.unary_unary("/muse.v1.Models/ListModels")(b"", metadata=metadata, timeout=10)
    assert_serves(address)
