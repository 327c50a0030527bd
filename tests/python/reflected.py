"""A gRPC client that knows nothing beforehand: it asks a server by reflection what it serves, and builds messages and calls
from the answer. No code is generated and no .proto file is read, so it sees what any foreign client sees.
"""

from typing import Any

import grpc
from google.protobuf import descriptor_pb2, json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_status import rpc_status

# Version 1 and its predecessor differ in the package's name alone, so the messages of one serve for both.
REFLECTION_VERSIONS = ("v1", "v1alpha")


class Reflection:
    """The reflection service of one server, in one version."""

    def __init__(self, channel: grpc.Channel, version: str, timeout: float = 10):
        self._timeout = timeout
        self._ask = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )

    def _answer(self, **question: str) -> reflection_pb2.ServerReflectionResponse:
        request = reflection_pb2.ServerReflectionRequest(**question)
        answers = list(self._ask(iter([request]), timeout=self._timeout))
        assert len(answers) == 1, answers
        if answers[0].HasField("error_response"):
            raise LookupError(f"{question}: {answers[0].error_response.error_message}")
        return answers[0]

    def services(self) -> list[str]:
        """Names of the services that the server lists."""
        return [service.name for service in self._answer(list_services="").list_services_response.service]

    def files_with(self, symbol: str) -> list[descriptor_pb2.FileDescriptorProto]:
        """The file that defines `symbol`, and what the server sends along with it."""
        return self._parse(self._answer(file_containing_symbol=symbol))

    def files_called(self, name: str) -> list[descriptor_pb2.FileDescriptorProto]:
        """The file of this name, such as `google/protobuf/duration.proto`."""
        return self._parse(self._answer(file_by_filename=name))

    @staticmethod
    def _parse(answer) -> list[descriptor_pb2.FileDescriptorProto]:
        files = answer.file_descriptor_response.file_descriptor_proto
        return [descriptor_pb2.FileDescriptorProto.FromString(file) for file in files]


class Client:
    """Calls any method of a server by its name, with requests and answers as reflected messages."""

    def __init__(self, channel: grpc.Channel, version: str = "v1"):
        self.channel = channel
        self.reflection = Reflection(channel, version)
        self._pool = DescriptorPool()
        self._known: set[str] = set()

    def method(self, name: str) -> MethodDescriptor:
        """The method called `package.Service/Method`."""
        service, method = name.split("/")
        self._learn(self.reflection.files_with(service))
        return self._pool.FindServiceByName(service).methods_by_name[method]

    def _learn(self, files: list[descriptor_pb2.FileDescriptorProto]) -> None:
        # A pool takes a file only after those it imports.
        for file in files:
            if file.name in self._known:
                continue
            self._known.add(file.name)
            for dependency in file.dependency:
                if dependency not in self._known:
                    sent_along = [other for other in files if other.name == dependency]
                    self._learn(sent_along or self.reflection.files_called(dependency))
            self._pool.Add(file)

    def message(self, name: str, fields: dict[str, Any] | None = None) -> Message:
        """A message by its full name, from JSON-like fields."""
        message = GetMessageClass(self._pool.FindMessageTypeByName(name))()
        return json_format.ParseDict(fields or {}, message)

    def request(self, name: str, fields: dict[str, Any] | None = None) -> Message:
        """The request message of a method."""
        method = self.method(name)
        return json_format.ParseDict(fields or {}, GetMessageClass(method.input_type)())

    def call(self, name: str, request: dict[str, Any] | Message | None = None, timeout: float = 60):
        """Calls `package.Service/Method`: the answer, or for a server stream the call itself, to iterate over."""
        method = self.method(name)
        if not isinstance(request, Message):
            request = self.request(name, request)
        kind = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        callable_ = kind(
            f"/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return callable_(request, timeout=timeout)


def details(error: grpc.RpcError) -> list[Message]:
    """The `google.rpc` details of a failed call, unpacked."""
    status = rpc_status.from_call(error)
    if status is None:
        return []
    known = {
        kind.DESCRIPTOR.full_name: kind
        for kind in (
            error_details_pb2.BadRequest,
            error_details_pb2.RetryInfo,
            error_details_pb2.QuotaFailure,
        )
    }
    unpacked = []
    for detail in status.details:
        message = known[detail.type_url.rsplit("/", 1)[1]]()
        assert detail.Unpack(message)
        unpacked.append(message)
    return unpacked


def violations(error: grpc.RpcError) -> dict[str, str]:
    """The fields that a server refused, each with its reason."""
    found = [detail for detail in details(error) if isinstance(detail, error_details_pb2.BadRequest)]
    return {violation.field: violation.description for bad in found for violation in bad.field_violations}
