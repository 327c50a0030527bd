"""The chart: linted, rendered from every file in ci/, checked against the Kubernetes schemas, its configuration files given
to the real services, its refusals tried.

Nothing here needs a cluster or the network. The services' binaries are taken from $MUSE_BIN, or target/debug; the Valkey
server from $MUSE_REDIS_SERVER, or .deps.
"""

import os
import pathlib
import socket
import subprocess
import time
import tomllib

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

CHART = pathlib.Path(__file__).resolve().parents[1] / "muse"
ROOT = CHART.parents[1]
# The oldest that Chart.yaml allows, and the newest that the schemas have.
KUBERNETES_VERSIONS = ["1.30", kubernetes_validate.latest_version()]
CASES = sorted((CHART / "ci").glob("*-values.yaml"))
WARNING = 2


def values_of(case: pathlib.Path) -> dict:
    return yaml.safe_load(case.read_text()) or {}


def render(values: dict, release: str = "demo") -> list[dict]:
    """Every object that an install would create."""
    with helm.Chart.load(CHART) as chart:
        manifests = chart.render(values, name=release, namespace="prod")
    texts = [text for path, text in manifests.items() if path.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def named(objects: list[dict], kind: str, name: str) -> dict:
    found = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    assert len(found) == 1, f"{len(found)} {kind} called {name} in {[(o['kind'], o['metadata']['name']) for o in objects]}"
    return found[0]


def pod_templates(objects: list[dict]) -> list[dict]:
    return [item["spec"]["template"] for item in objects if item["kind"] in ("Deployment", "StatefulSet")]


@pytest.fixture(params=CASES, ids=lambda case: case.stem)
def case(request) -> dict:
    return values_of(request.param)


def test_lint_has_nothing_to_say_beyond_hints(case):
    report = helm.lint(CHART, case, strict=True)
    complaints = [message for message in report["messages"] if message["severity"] >= WARNING]
    assert report["errors"] == [] and complaints == [], report


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_rendered_object_satisfies_the_kubernetes_schemas(case, version):
    objects = render(case)
    assert len(objects) > 10
    for item in objects:
        kubernetes_validate.validate(item, version, strict=True)


def test_no_two_objects_share_a_name(case):
    names = [(item["kind"], item["metadata"]["name"]) for item in render(case)]
    assert len(names) == len(set(names)), names


def test_every_container_runs_without_root_privileges_or_a_writable_root(case):
    for template in pod_templates(render(case)):
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["automountServiceAccountToken"] is False
        for container in pod["containers"] + pod.get("initContainers", []):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"], container["name"]
            assert security["capabilities"] == {"drop": ["ALL"]}, container["name"]
            assert "memory" in container["resources"]["limits"], container["name"]


def test_what_is_mounted_has_a_volume_and_what_is_referred_to_exists(case):
    objects = render(case)
    for template in pod_templates(objects):
        pod = template["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]} | {"data": {}}
        for container in pod["containers"] + pod.get("initContainers", []):
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes), container["name"]
        for volume in volumes.values():
            if "configMap" in volume:
                named(objects, "ConfigMap", volume["configMap"]["name"])


def test_a_pod_has_longer_to_end_than_its_drain(case):
    for text, template in configurations(render(case)):
        drain = tomllib.loads(text)["drain"]["timeout_seconds"]
        before = template["spec"]["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert template["spec"]["terminationGracePeriodSeconds"] >= before + drain + 5


def test_selectors_of_services_policies_and_budgets_find_pods(case):
    objects = render(case)
    labels = [template["metadata"]["labels"] for template in pod_templates(objects)]

    def finds(selector: dict) -> bool:
        return any(selector.items() <= have.items() for have in labels)

    for item in objects:
        if item["kind"] == "Service":
            assert finds(item["spec"]["selector"]), item["metadata"]["name"]
        if item["kind"] == "PodDisruptionBudget":
            assert finds(item["spec"]["selector"]["matchLabels"]), item["metadata"]["name"]
        if item["kind"] == "NetworkPolicy":
            assert finds(item["spec"]["podSelector"]["matchLabels"]), item["metadata"]["name"]


# === the services' configuration ===


def configurations(objects: list[dict]) -> list[tuple[str, dict]]:
    """The TOML that each pod of ours gets, with the pod."""
    found = []
    for template in pod_templates(objects):
        arguments = template["spec"]["containers"][0].get("args")
        if arguments is None:
            continue
        file = pathlib.Path(arguments[arguments.index("--config") + 1]).name
        config_map = next(v["configMap"]["name"] for v in template["spec"]["volumes"] if v["name"] == "config")
        found.append((named(objects, "ConfigMap", config_map)["data"][file], template))
    assert found
    return found


def binary(template: dict) -> pathlib.Path:
    component = template["metadata"]["labels"]["app.kubernetes.io/component"]
    return pathlib.Path(os.environ.get("MUSE_BIN", ROOT / "target/debug")) / f"muse-{component}"


def test_the_services_accept_the_configuration_that_their_pods_get(case, tmp_path):
    for text, template in configurations(render(case)):
        program = binary(template)
        assert program.exists(), f"{program} is missing: build the workspace first, or point MUSE_BIN at the binaries"
        file = tmp_path / "config.toml"
        file.write_text(text)
        container = template["spec"]["containers"][0]
        environment = {item["name"]: item["value"] for item in container.get("env", [])}
        answer = subprocess.run(
            [program, "--config", file, "--check"], env=environment, capture_output=True, text=True, timeout=30
        )
        assert answer.returncode == 0, f"{program.name} refused:\n{answer.stderr}\n{text}"
        resolved = tomllib.loads(answer.stdout)
        for section, keys in tomllib.loads(text).items():
            if isinstance(keys, dict):
                assert keys.items() <= resolved[section].items(), section


def test_ports_in_the_configuration_are_those_of_the_pod(case):
    for text, template in configurations(render(case)):
        config = tomllib.loads(text)
        ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
        for section, port in ports.items():
            assert config[section]["listen"] == f"0.0.0.0:{port}"


def test_workers_name_every_encoder_and_the_gateway_s_port():
    objects = render({"encoder": {"replicas": 3}, "gateway": {"service": {"port": 9000}}})
    config = tomllib.loads(named(objects, "ConfigMap", "demo-muse-base")["data"]["worker.toml"])
    assert config["encoder"]["endpoints"] == [
        f"http://demo-muse-encoder-{index}.demo-muse-encoder:7700" for index in range(3)
    ]
    assert config["hub"]["endpoints"] == ["http://demo-muse-gateway:9000"]


# === what the values mean ===


def test_redis_keeps_what_it_acknowledged():
    lines = named(render({}), "ConfigMap", "demo-muse-redis")["data"]["valkey.conf"].splitlines()
    for line in ["appendonly yes", "appendfsync always", "aof-load-truncated no", "maxmemory-policy noeviction"]:
        assert line in lines
    stateful = named(render({}), "StatefulSet", "demo-muse-redis")["spec"]
    assert stateful["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Retain"
    assert stateful["volumeClaimTemplates"][0]["metadata"]["name"] == "data"


def ask(path: pathlib.Path, *words: str) -> str:
    """One command over a server's socket; the answer as it comes."""
    command = "".join([f"*{len(words)}\r\n", *(f"${len(word)}\r\n{word}\r\n" for word in words)])
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(command.encode())
        return connection.recv(65_536).decode()


@pytest.mark.parametrize("durability", ["always", "synced", "everysec"])
def test_a_real_server_accepts_the_redis_configuration_and_runs_on_it(tmp_path, durability):
    program = pathlib.Path(os.environ.get("MUSE_REDIS_SERVER", ROOT / ".deps/valkey/valkey-server"))
    assert program.exists(), f"{program} is missing: `make runtime` fetches it, or name one in MUSE_REDIS_SERVER"
    text = named(render({"redis": {"durability": durability}}), "ConfigMap", "demo-muse-redis")["data"]["valkey.conf"]
    file, door = tmp_path / "valkey.conf", tmp_path / "door"
    # No port, and a folder of its own: only what would collide here differs from the chart.
    assert "dir /data" in text.splitlines()
    file.write_text(text.replace("dir /data", f"dir {tmp_path}"))
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([program, file, "--port", "0", "--unixsocket", door], stdout=log, stderr=log)
    try:
        give_up = time.monotonic() + 30
        while not door.exists():
            assert server.poll() is None and time.monotonic() < give_up, (tmp_path / "log").read_text()
            time.sleep(0.02)
        wanted = {
            "appendonly": "yes",
            "appendfsync": "always" if durability == "always" else "everysec",
            "aof-load-truncated": "no",
            "maxmemory": str(1 << 30),
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        for key, value in wanted.items():
            assert ask(door, "CONFIG", "GET", key).split("\r\n")[2:5:2] == [key, value]
        assert ask(door, "SET", "key", "value") == "+OK\r\n"
    finally:
        server.terminate()
        server.wait(timeout=30)


def test_an_external_redis_takes_the_place_of_the_chart_s_own_and_its_password_stays_in_a_file():
    objects = render(values_of(CHART / "ci/external-redis-values.yaml"))
    assert not [item for item in objects if item["metadata"]["name"] == "demo-muse-redis"]
    config = tomllib.loads(named(objects, "ConfigMap", "demo-muse-gateway")["data"]["gateway.toml"])
    assert config["redis"] == {
        "url": "rediss://queue.example.com:6380/0",
        "password_file": "/run/secrets/redis/password",
    }
    assert config["queue"]["durability"] == "unverified"
    pod = named(objects, "Deployment", "demo-muse-gateway")["spec"]["template"]["spec"]
    secret = next(volume for volume in pod["volumes"] if volume["name"] == "redis")["secret"]
    assert secret["secretName"] == "muse-redis" and secret["items"] == [{"key": "password", "path": "password"}]
    mount = next(m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "redis")
    assert mount["mountPath"] == "/run/secrets/redis"


def gateway_of(values: dict) -> tuple[dict, dict]:
    """The gateway's configuration, and its pod."""
    objects = render(values)
    config = tomllib.loads(named(objects, "ConfigMap", "demo-muse-gateway")["data"]["gateway.toml"])
    return config, named(objects, "Deployment", "demo-muse-gateway")["spec"]["template"]["spec"]


def files_of(pod: dict) -> dict[str, tuple[str, str]]:
    """Each file that Secrets put into the pod's first container: its path, to the Secret and the key in it."""
    folders = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    return {
        f"{folders[volume['name']]}/{item['path']}": (volume["secret"]["secretName"], item["key"])
        for volume in pod["volumes"]
        if "secret" in volume
        for item in volume["secret"]["items"]
    }


def test_sentinels_passwords_and_certificates_reach_the_gateway_as_files():
    config, pod = gateway_of(values_of(CHART / "ci/sentinel-values.yaml"))
    redis, files = config["redis"], files_of(pod)
    assert redis["sentinels"] == [f"rediss://sentinel-{n}.queue:26379" for n in range(3)]
    assert redis["service_name"] == "muse" and redis["url"].startswith("rediss://muse@")
    assert files[redis["password_file"]] == ("muse-redis", "password")
    assert files[redis["sentinel_password_file"]] == ("muse-sentinel", "secret")
    assert files[redis["ca_file"]] == ("queue-ca", "ca.crt")
    assert config["queue"] == {
        "durability": "synced",
        "replicas": 1,
        "replicas_on_disk": True,
        "confirm_timeout_ms": 5000,
        "shards": 1,
    }


def test_the_nodes_of_a_redis_cluster_reach_the_gateway():
    config, pod = gateway_of(values_of(CHART / "ci/cluster-values.yaml"))
    assert config["redis"]["cluster_nodes"] == ["redis://node-0.queue:6379", "redis://node-1.queue:6379"]
    assert config["queue"]["shards"] == 12 and "sentinels" not in config["redis"]
    assert files_of(pod)[config["redis"]["password_file"]] == ("muse-redis", "password")


def test_pictures_go_into_a_bucket_with_credentials_and_certificates_as_files():
    config, pod = gateway_of(values_of(CHART / "ci/sentinel-values.yaml"))
    results, files = config["results"], files_of(pod)
    assert (results["store"], results["endpoint"], results["region"]) == (
        "s3://pictures/muse",
        "https://minio.storage:9000",
        "eu-central-1",
    )
    assert files[results["credentials_file"]] == ("muse-pictures", "credentials")
    assert files[results["ca_file"]] == ("storage-ca", "bundle.pem")
    config, pod = gateway_of({"results": {"store": "az://pictures/muse", "account": "studio"}})
    assert config["results"] == {"store": "az://pictures/muse", "account": "studio"} and files_of(pod) == {}


def test_pictures_go_onto_a_claim_that_is_mounted_where_the_gateway_writes():
    config, pod = gateway_of(values_of(CHART / "ci/external-redis-values.yaml"))
    assert config["results"] == {"store": "file:///var/lib/muse/pictures"}
    volume = next(volume for volume in pod["volumes"] if volume["name"] == "pictures")
    assert volume["persistentVolumeClaim"] == {"claimName": "muse-pictures"}
    mount = next(mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "pictures")
    assert mount == {"name": "pictures", "mountPath": "/var/lib/muse/pictures"}


def test_by_default_pictures_are_in_redis_and_no_replica_is_waited_for():
    config, pod = gateway_of({})
    assert config["results"] == {"store": "redis"} and files_of(pod) == {}
    assert config["queue"] == {
        "durability": "always",
        "replicas": 0,
        "replicas_on_disk": False,
        "confirm_timeout_ms": 2000,
        "shards": 1,
    }


def test_a_gpu_pool_asks_for_its_gpus_and_takes_the_image_that_can_use_them():
    objects = render(values_of(CHART / "ci/gpu-values.yaml"))
    gpu = named(objects, "Deployment", "demo-muse-base-gpu")["spec"]
    container = gpu["template"]["spec"]["containers"][0]
    assert gpu["replicas"] == 4
    assert container["image"].startswith("muse-worker-cuda:")
    assert container["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": 1}
    assert gpu["template"]["spec"]["runtimeClassName"] == "nvidia"
    cpu = named(objects, "Deployment", "demo-muse-base-cpu")["spec"]
    assert cpu["replicas"] == 0, "0 must win over the default"
    assert "nodeSelector" not in cpu["template"]["spec"] and "runtimeClassName" not in cpu["template"]["spec"]
    assert cpu["template"]["spec"]["containers"][0]["image"].startswith("muse-worker:")
    mig = named(objects, "Deployment", "demo-muse-superres-gpu")["spec"]["template"]["spec"]
    assert mig["containers"][0]["resources"]["limits"]["nvidia.com/mig-1g.10gb"] == 1
    assert mig["initContainers"][0]["image"] == "muse-bundle-large:3"
    config = tomllib.loads(named(objects, "ConfigMap", "demo-muse-superres-gpu")["data"]["worker.toml"])
    assert config["stage"] == "superres" and config["runtime"]["providers"] == ["cuda"]


def test_the_bundle_is_copied_to_where_the_image_does_not_have_it():
    template = named(render({}), "Deployment", "demo-muse-base")["spec"]["template"]["spec"]
    copy = template["initContainers"][0]
    assert copy["command"] == ["cp", "-R", "/bundle/.", "/copy/"]
    assert copy["volumeMounts"] == [{"name": "bundle", "mountPath": "/copy"}]
    mount = next(m for m in template["containers"][0]["volumeMounts"] if m["name"] == "bundle")
    assert mount == {"name": "bundle", "mountPath": "/bundle", "readOnly": True}


def test_a_bundle_on_a_claim_is_mounted_read_only_and_not_copied():
    template = named(render(values_of(CHART / "ci/external-redis-values.yaml")), "Deployment", "demo-muse-base")
    pod = template["spec"]["template"]["spec"]
    assert "initContainers" not in pod
    volume = next(v for v in pod["volumes"] if v["name"] == "bundle")
    assert volume["persistentVolumeClaim"] == {"claimName": "muse-bundles", "readOnly": True}
    mount = next(m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "bundle")
    assert mount["subPath"] == "muse-large/2026-11-01" and mount["readOnly"]


def test_a_changed_setting_restarts_the_pods_that_read_it_and_no_others():
    def sums(values):
        return {
            template["metadata"]["labels"].get("muse-pool", template["metadata"]["labels"]["app.kubernetes.io/component"]):
            template["metadata"]["annotations"]["checksum/config"]
            for template in pod_templates(render(values))
        }  # fmt: skip

    before = sums({})
    after = sums({"gateway": {"defaultModel": "muse-demo"}})
    assert {name for name in before if before[name] != after[name]} == {"gateway"}


def test_only_named_peers_and_the_workers_reach_the_gateway_and_only_gateways_reach_redis():
    objects = render({"networkPolicy": {"clients": [{"podSelector": {"matchLabels": {"app": "studio"}}}]}})
    gateway = named(objects, "NetworkPolicy", "demo-muse-gateway")["spec"]["ingress"]
    assert len(gateway) == 1 and [port["port"] for port in gateway[0]["ports"]] == [7700]
    workers, studio = gateway[0]["from"]
    assert workers["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "worker"
    assert studio == {"podSelector": {"matchLabels": {"app": "studio"}}}
    redis = named(objects, "NetworkPolicy", "demo-muse-redis")["spec"]["ingress"]
    assert redis[0]["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "gateway"
    assert "ingress" not in named(objects, "NetworkPolicy", "demo-muse-worker")["spec"]


def test_the_notes_say_plainly_that_there_is_no_authentication():
    with helm.Chart.load(CHART) as chart:
        notes = chart.render({}, name="demo", namespace="prod")["muse/templates/NOTES.txt"]
    assert "NO AUTHENTICATION" in notes and "muse-client" in notes, notes


# === refusals ===

REFUSED = {
    "an unknown key": ({"gatway": {}}, "gatway"),
    "an unknown key inside a pool": ({"workerPools": [{"name": "base", "stage": "base", "replica": 2}]}, "replica"),
    "an unknown key inside resources": ({"gateway": {"resources": {"request": {}}}}, "request"),
    "an unknown stage": ({"workerPools": [{"name": "base", "stage": "low"}]}, "stage"),
    "a pool without a stage": ({"workerPools": [{"name": "base"}]}, "stage"),
    "a pool that is called as another part": ({"workerPools": [{"name": "redis", "stage": "base"}]}, "name"),
    "no pool": ({"workerPools": []}, "workerPools"),
    "no base pool": ({"workerPools": [{"name": "sr", "stage": "superres"}]}, "no pool of stage base"),
    "two pools of one name": (
        {"workerPools": [{"name": "base", "stage": "base"}, {"name": "base", "stage": "superres"}]},
        "names must differ",
    ),
    "an unknown provider": ({"encoder": {"providers": ["coreml"]}}, "providers"),
    "no gateway": ({"gateway": {"replicas": 0}}, "replicas"),
    "replicas as text": ({"encoder": {"replicas": "two"}}, "replicas"),
    "cuda without a GPU": ({"workerDefaults": {"providers": ["cuda"]}}, "gpu.count"),
    "a GPU without cuda": ({"encoder": {"gpu": {"count": 1}}}, "would not use a GPU"),
    "a password in the URL": ({"redis": {"external": {"url": "redis://:secret@queue:6379"}}}, "url"),
    "a password without a URL": ({"redis": {"external": {"existingSecret": {"name": "muse-redis"}}}}, "without redis.external.url"),
    "own Redis unverified": ({"redis": {"durability": "unverified"}}, "can be asked"),
    "no durability at all": ({"redis": {"durability": "none"}}, "durability"),
    "replicas of the own Redis": ({"redis": {"replicas": 1}}, "one instance"),
    "replicas on disk, but none": (
        {"redis": {"replicasOnDisk": True, "external": {"url": "redis://queue:6379"}}},
        "redis.replicas is 0",
    ),
    "Sentinels without a URL": ({"redis": {"external": {"sentinels": ["redis://s1:26379"]}}}, "redis.external.url too"),
    "a password in a Sentinel's address": (
        {"redis": {"external": {"url": "redis://q:1", "sentinels": ["redis://:secret@s1:26379"]}}},
        "sentinels",
    ),
    "a Sentinel's password without Sentinels": (
        {"redis": {"external": {"url": "redis://q:1", "sentinelSecret": {"name": "s"}}}},
        "without redis.external.sentinels",
    ),
    "cluster nodes and Sentinels": (
        {"redis": {"external": {"url": "redis://q:1", "sentinels": ["redis://s:1"], "clusterNodes": ["redis://n:1"]}}},
        "do not go with sentinels",
    ),
    "replicas in a cluster": (
        {"redis": {"replicas": 1, "external": {"url": "redis://q:1", "clusterNodes": ["redis://n:1"]}}},
        "not offered",
    ),
    "no shards": ({"redis": {"shards": 0}}, "shards"),
    "no time to confirm": ({"redis": {"confirmTimeoutMs": 0}}, "confirmTimeoutMs"),
    "pictures nowhere": ({"results": {"store": "ftp://host/a"}}, "store"),
    "keys in a bucket's address": ({"results": {"store": "s3://key:secret@bucket"}}, "store"),
    "a folder without a volume": ({"results": {"store": "file:///pictures"}}, "results.claim"),
    "a volume without a folder": ({"results": {"claim": "pictures"}}, "results.store is redis"),
    "a region without a bucket": ({"results": {"region": "eu"}}, "are for buckets"),
    "open network": ({"networkPolicy": {"enabled": False}}, "acceptUnauthenticatedAccess"),
    "load balancer": ({"gateway": {"service": {"type": "LoadBalancer"}}}, "acceptUnauthenticatedAccess"),
    "an environment variable that is not ours": ({"gateway": {"env": [{"name": "PATH", "value": "/"}]}}, "env"),
    "a claim without a name": ({"bundle": {"source": "claim"}}, "bundle.claim.name"),
    "a bundle from nowhere": ({"bundle": {"source": "git"}}, "source"),
    "a trace ratio above 1": ({"telemetry": {"traceRatio": 2}}, "traceRatio"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_values_that_would_not_work_are_refused_with_the_reason(values, word):
    with pytest.raises(helm.HelmError) as refusal:
        render(values)
    assert word in str(refusal.value), refusal.value


def test_the_schema_lists_every_value_and_refuses_all_others():
    with helm.Chart.load(CHART) as chart:
        schema, defaults = chart.schema, chart.values
    definitions = schema["definitions"]

    def follow(node):
        return definitions[node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node

    def walk(node, path):
        node = follow(node)
        if node.get("type") == "object" and path != ".global":
            assert "additionalProperties" in node, f"{path} takes anything"
            assert node["additionalProperties"] is not True, f"{path} takes anything"
        for key, child in node.get("properties", {}).items():
            walk(child, f"{path}.{key}")
        if isinstance(node.get("items"), dict):
            walk(node["items"], f"{path}[]")

    walk(schema, "")

    def covered(node, value, path):
        node = follow(node)
        if isinstance(value, dict) and "properties" in node:
            assert set(value) <= set(node["properties"]), path
            for key, child in value.items():
                covered(node["properties"][key], child, f"{path}.{key}")

    covered(schema, defaults, "")


def test_a_long_release_name_still_gives_names_that_kubernetes_takes():
    for item in render({}, release="a-very-long-name-for-a-release-of-the-cluster-x"):
        assert len(item["metadata"]["name"]) <= 63, item["metadata"]["name"]


def test_the_chart_packages(tmp_path):
    archive = helm.package(CHART, destination=tmp_path)
    assert pathlib.Path(archive).stat().st_size > 1000
