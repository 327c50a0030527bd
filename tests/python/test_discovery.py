"""What a client that knows nothing can find out."""

import grpc
import pytest
from reflected import REFLECTION_VERSIONS, Client, Reflection

PUBLIC = {"muse.v1.Generation", "muse.v1.Models", "muse.v1.Admin", "grpc.health.v1.Health"}
SERVING = 1


@pytest.mark.parametrize("version", REFLECTION_VERSIONS)
def test_reflection_lists_every_public_service(channel, version):
    listed = set(Reflection(channel, version).services())
    assert PUBLIC <= listed, listed


@pytest.mark.parametrize("version", REFLECTION_VERSIONS)
def test_reflection_describes_every_listed_service_down_to_its_messages(channel, version):
    client = Client(channel, version)
    for service in client.reflection.services():
        methods = [
            method.name
            for file in client.reflection.files_with(service)
            for described in file.service
            if f"{file.package}.{described.name}" == service
            for method in described.method
        ]
        assert methods, service
        for method in methods:
            assert client.request(f"{service}/{method}") is not None


def test_reflection_refuses_a_symbol_that_does_not_exist(channel):
    # As an error inside the answer, or as the call's own.
    with pytest.raises((LookupError, grpc.RpcError), match="NoSuchService"):
        Reflection(channel, "v1").files_with("muse.v1.NoSuchService")


@pytest.mark.parametrize("service", ["", "muse.v1.Generation"])
def test_health_says_serving(client, service):
    assert client.call("grpc.health.v1.Health/Check", {"service": service}).status == SERVING


def test_health_of_an_unknown_service_is_not_found(client):
    with pytest.raises(grpc.RpcError) as refusal:
        client.call("grpc.health.v1.Health/Check", {"service": "muse.v1.NoSuchService"})
    assert refusal.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_method_that_does_not_exist_is_unimplemented(channel):
    call = channel.unary_unary("/muse.v1.Generation/NoSuchMethod")
    with pytest.raises(grpc.RpcError) as refusal:
        call(b"", timeout=10)
    assert refusal.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_model_describes_itself_as_its_manifest_does(model, manifest):
    height, width = manifest["superres" if "superres" in manifest else "base"]["image_size"]
    assert (model.width, model.height) == (width, height)
    assert model.max_text_tokens == manifest["text"]["max_length"]
    assert len(bytes.fromhex(model.bundle_digest)) == 32
    described = [manifest[name] for name in ("base", "superres") if name in manifest]
    assert len(model.stages) == len(described)
    for stage, wanted in zip(model.stages, described, strict=True):
        assert [stage.grid_rows, stage.grid_columns] == wanted["grid"]
        assert stage.codebook_size == wanted["codebook_size"]
        assert stage.defaults.steps == wanted["defaults"]["steps"]
        assert stage.defaults.guidance == pytest.approx(wanted["defaults"]["guidance"])
        assert stage.workers >= 1


def test_operators_see_a_worker_of_each_stage_and_a_pool_for_it(client, model):
    workers = client.call("muse.v1.Admin/ListWorkers").workers
    pools = client.call("muse.v1.Admin/GetQueueStatus").pools
    for stage in model.stages:
        mine = [worker for worker in workers if worker.stage == stage.stage and worker.model == model.name]
        assert mine, workers
        assert all(worker.provider and worker.device and worker.row_budget >= 1 for worker in mine), mine
        assert [pool.workers for pool in pools if pool.stage == stage.stage and pool.model == model.name] == [len(mine)]
