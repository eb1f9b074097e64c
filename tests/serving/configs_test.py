"""TF Serving's settings, each checked against what it configures."""

import inspect
import io
import os
import re
import shutil
import subprocess
import tarfile
import time
import urllib.request
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from mg_keras.serving.server import LocalServer

SERVING = Path(__file__).resolve().parents[2] / "serving"
IMAGE = r"tensorflow/serving:\d+\.\d+\.\d+"

INT64, BOOL, STRING, MESSAGE = 3, 8, 9, 11
# The published wheel leaves these two messages out; their fields are those of TF Serving's session_bundle_config.proto
# and monitoring_config.proto: name -> (number, type, message, repeated)
WRAPPED = "google.protobuf.Int64Value"
MESSAGES = {
    "BatchingParameters": {
        "max_batch_size": (1, MESSAGE, WRAPPED, False),
        "batch_timeout_micros": (2, MESSAGE, WRAPPED, False),
        "max_enqueued_batches": (3, MESSAGE, WRAPPED, False),
        "num_batch_threads": (4, MESSAGE, WRAPPED, False),
        "thread_pool_name": (5, MESSAGE, "google.protobuf.StringValue", False),
        "allowed_batch_sizes": (6, INT64, None, True),
        "pad_variable_length_inputs": (7, BOOL, None, False),
    },
    "PrometheusConfig": {"enable": (1, BOOL, None, False), "path": (2, STRING, None, False)},
    "MonitoringConfig": {"prometheus_config": (1, MESSAGE, "tensorflow.serving.PrometheusConfig", False)},
}


def message_class(name):
    file = descriptor_pb2.FileDescriptorProto(
        name="serving_configs.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    for message, fields in MESSAGES.items():
        added = file.message_type.add(name=message)
        for field, (number, kind, of, repeated) in fields.items():
            added.field.add(
                name=field,
                number=number,
                type=kind,
                type_name=f".{of}" if of else None,
                label=3 if repeated else 1,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))


def parsed(name, message):
    return text_format.Parse((SERVING / name).read_text(encoding="utf-8"), message)


def documents(path):
    return list(yaml.safe_load_all((SERVING / path).read_text(encoding="utf-8")))


def named(found):
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def manifests():
    kustomization = documents("kustomization.yaml")[0]
    return named(each for name in kustomization["resources"] for each in documents(name))


def server_pod():
    return manifests()["Deployment", "multigrain"]["spec"]["template"]["spec"]


def publishing_pod():
    return named(documents("kubernetes/publish.yaml"))["Pod", "multigrain-publish"]["spec"]


def container():
    (only,) = server_pod()["containers"]
    return only


def flags(arguments):
    return dict(flag.removeprefix("--").split("=", 1) for flag in arguments)


def compose_service(**variables):
    """The service as docker compose would see it with these variables set."""

    def value(found):
        return variables.get(found["name"], found["default"])

    text = (SERVING / "compose.yaml").read_text(encoding="utf-8")
    text = re.sub(r"\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", value, text)
    (service,) = yaml.safe_load(text)["services"].values()
    return service


def server_arguments(cpus):
    """The pod's arguments as the kubelet would fill them in, were that many processors requested."""
    (variable,) = container()["env"]
    assert variable == {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}}
    return [argument.replace("$(CPUS)", cpus) for argument in container()["args"]]


def gigabytes(amount):
    number, unit = re.fullmatch(r"(\d+)(Gi|g)", amount).groups()
    # Docker's g and Kubernetes' Gi are the same
    assert unit in ("Gi", "g")
    return int(number) * 2**30 / 1e9


def test_models():
    (model,) = parsed("models.config", ModelServerConfig()).model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("multigrain", "/models/multigrain", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 2
    # a first export is version 1, and both labels are there from then on
    assert dict(model.version_labels) == {"stable": 1, "canary": 1}


def test_batching():
    batching = parsed("batching.config", message_class("BatchingParameters")())
    assert batching.max_batch_size.value == 16
    assert not batching.pad_variable_length_inputs
    assert not batching.allowed_batch_sizes
    assert min(batching.num_batch_threads.value, batching.max_enqueued_batches.value) > 0
    # what was tried against the local server holds for TF Serving
    defaults = {name: each.default for name, each in inspect.signature(LocalServer).parameters.items()}
    assert defaults["max_batch_size"] == batching.max_batch_size.value
    assert defaults["batch_timeout"] * 1e6 == pytest.approx(batching.batch_timeout_micros.value)
    assert defaults["batch_threads"] == batching.num_batch_threads.value


def test_a_misspelt_field_would_be_noticed():
    with pytest.raises(text_format.ParseError, match="max_batch_sizes"):
        text_format.Parse("max_batch_sizes { value: 16 }", message_class("BatchingParameters")())


def test_monitoring():
    monitoring = parsed("monitoring.config", message_class("MonitoringConfig")())
    assert monitoring.prometheus_config.enable
    annotations = manifests()["Deployment", "multigrain"]["spec"]["template"]["metadata"]["annotations"]
    assert monitoring.prometheus_config.path == annotations["prometheus.io/path"]


COMPOSE_KEYS = {
    "image": str, "entrypoint": list, "command": list, "ports": list, "volumes": list, "user": str, "read_only": bool,
    "tmpfs": list, "cap_drop": list, "security_opt": list, "cpus": str, "mem_limit": str, "pids_limit": int,
    "restart": str, "init": bool, "healthcheck": dict,
}  # fmt: skip


def test_compose():
    (compose,) = documents("compose.yaml")
    assert set(compose) == {"name", "services"}
    (service,) = compose["services"].values()
    assert {key: type(value) for key, value in service.items()} == COMPOSE_KEYS
    assert re.fullmatch(rf"\$\{{TF_SERVING_IMAGE:-{IMAGE}\}}", service["image"])
    assert service["init"]
    assert all(re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port) for port in service["ports"])
    assert all(re.fullmatch(r"(\.|\$\{MODELS:-\.\./models\}):/(config|models):ro", each) for each in service["volumes"])
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"])
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"\d+g", service["mem_limit"])
    health = service["healthcheck"]
    assert set(health) == {"test", "interval", "timeout", "retries", "start_period"}
    assert health["test"][:3] == ["CMD", "bash", "-c"]
    assert all(re.fullmatch(r"\d+s", health[key]) for key in ("interval", "timeout", "start_period"))


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_the_health_check_of_compose(server):
    (compose,) = documents("compose.yaml")
    _, *command, script = compose["services"]["tf-serving"]["healthcheck"]["test"]
    script = script.replace("$$", "$").replace("8501", server.rest.rsplit(":", 1)[1])
    assert subprocess.run([*command, script], check=False, timeout=30).returncode == 0
    other = script.replace("multigrain", "nothing")
    assert subprocess.run([*command, other], check=False, timeout=30).returncode == 1


def test_every_file_named_by_a_flag_is_there():
    values = flags(container()["args"]).values()
    files = {value.removeprefix("/config/") for value in values if value.startswith("/config/")}
    (generator,) = documents("kustomization.yaml")[0]["configMapGenerator"]
    assert files == set(generator["files"]) == {path.name for path in SERVING.glob("*.config")}
    assert {"name": "config", "configMap": {"name": generator["name"]}} in server_pod()["volumes"]


@pytest.mark.parametrize("cpus", ["2", "7"])
def test_the_server_is_started_alike_and_its_threads_follow_its_processors(cpus):
    service = compose_service(CPUS=cpus)
    assert service["cpus"] == int(cpus)
    assert service["command"] == server_arguments(cpus)
    values = flags(service["command"])
    assert values["tensorflow_intra_op_parallelism"] == values["tensorflow_inter_op_parallelism"] == cpus
    # enough requests at once to fill the batches that run
    batching = parsed("batching.config", message_class("BatchingParameters")())
    together = batching.max_batch_size.value * batching.num_batch_threads.value
    assert int(values["rest_api_num_threads"]) >= together
    assert int(values["grpc_max_threads"]) >= together


def test_compose_starts_where_there_are_two_cores():
    service = compose_service()
    assert service["cpus"] == 2
    assert service["command"] == server_arguments(container()["resources"]["requests"]["cpu"])


def test_memory_holds_two_versions_of_a_resnet_50():
    # docs/serving.md, Memory: ten times the weights for a version, and TensorFlow
    needed = 2 * 10 * 0.1 + 0.6
    resources = container()["resources"]
    assert gigabytes(resources["requests"]["memory"]) > needed
    assert gigabytes(resources["limits"]["memory"]) > needed + 1
    assert gigabytes(compose_service()["mem_limit"]) == gigabytes(resources["limits"]["memory"])


def test_clients_hear_of_pods_that_come_and_go():
    arguments = flags(container()["args"])["grpc_channel_arguments"]
    # as tensorflow_model_server reads it
    ages = {key: int(value) / 1000 for key, value in (each.split("=") for each in arguments.split(","))}
    assert set(ages) == {"grpc.max_connection_age_ms", "grpc.max_connection_age_grace_ms"}
    age, grace = ages["grpc.max_connection_age_ms"], ages["grpc.max_connection_age_grace_ms"]
    assert grace * 1000 >= int(flags(container()["args"])["rest_api_timeout_in_ms"])
    # a pod that goes answers until the connections of clients with an old answer from DNS have ended
    command, seconds = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert float(seconds) > 30 + 1.1 * age
    assert server_pod()["terminationGracePeriodSeconds"] > float(seconds)


def test_sigterm_reaches_the_server():
    # which has no handler, and so must not be the first process
    assert server_pod()["shareProcessNamespace"]
    assert compose_service()["init"]


def test_no_replicas_beside_an_autoscaler():
    found = manifests()
    scaled = [each["spec"]["scaleTargetRef"] for (kind, _), each in found.items() if kind == "HorizontalPodAutoscaler"]
    assert scaled
    for target in scaled:
        assert "replicas" not in found[target["kind"], target["name"]]["spec"]


@pytest.mark.parametrize("path", sorted(path.name for path in (SERVING / "kubernetes").glob("*.yaml")))
def test_manifests_fit_kubernetes_schemas(path):
    # a version is published by hand
    assert (f"kubernetes/{path}" in documents("kustomization.yaml")[0]["resources"]) == (path != "publish.yaml")
    for manifest in documents(f"kubernetes/{path}"):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_a_misspelt_manifest_would_be_noticed():
    manifest = manifests()["Deployment", "multigrain"]
    manifest["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_kubernetes_parts_fit_together():
    found = manifests()
    deployment = found["Deployment", "multigrain"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert found["Service", "multigrain"]["spec"]["selector"] == labels
    assert found["PodDisruptionBudget", "multigrain"]["spec"]["selector"]["matchLabels"] == labels
    target = found["HorizontalPodAutoscaler", "multigrain"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", "multigrain")
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    for port in found["Service", "multigrain"]["spec"]["ports"]:
        assert port["port"] == ports[port["targetPort"]]
    claim = {"claimName": "multigrain-models", "readOnly": True}
    assert {"name": "models", "persistentVolumeClaim": claim} in deployment["template"]["spec"]["volumes"]
    assert ("PersistentVolumeClaim", "multigrain-models") in found


@pytest.mark.parametrize(
    ("pod", "mounts"),
    [
        (server_pod, {"/models": True, "/config": True, "/tmp": False}),
        (publishing_pod, {"/models": False, "/publish": True}),
    ],
)
def test_a_pod_is_bounded_and_may_do_little(pod, mounts):
    pod = pod()
    # what the namespace's level, restricted, asks for
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod)
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim"}
    (only,) = pod["containers"]
    assert re.fullmatch(IMAGE, only["image"])
    assert only["image"] == container()["image"]
    assert not only["securityContext"]["allowPrivilegeEscalation"]
    assert only["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    # and more
    assert not pod["automountServiceAccountToken"]
    assert only["securityContext"]["readOnlyRootFilesystem"]
    assert set(only["resources"]["requests"]) == {"cpu", "memory"}
    assert "memory" in only["resources"]["limits"]
    assert {mount["mountPath"]: mount.get("readOnly", False) for mount in only["volumeMounts"]} == mounts


def test_the_publishing_pod_fits_the_servers():
    found, publishing = manifests(), named(documents("kubernetes/publish.yaml"))
    namespace = documents("kustomization.yaml")[0]["namespace"]
    assert {each["metadata"]["namespace"] for each in publishing.values()} == {namespace}
    assert ("Namespace", namespace) in found
    # it gets no requests
    labels = publishing["Pod", "multigrain-publish"]["metadata"]["labels"]
    assert not found["Service", "multigrain"]["spec"]["selector"].items() <= labels.items()
    volumes = {volume["name"]: volume for volume in publishing_pod()["volumes"]}
    assert volumes["models"]["persistentVolumeClaim"] == {"claimName": "multigrain-models"}
    assert found["PersistentVolumeClaim", "multigrain-models"]["spec"]["accessModes"] == ["ReadWriteMany"]
    assert ("ConfigMap", volumes["publish"]["configMap"]["name"]) in publishing
    # it writes where the servers look
    (model,) = parsed("models.config", ModelServerConfig()).model_config_list.config
    assert f"${{MODELS:-{model.base_path}}}" in publishing["ConfigMap", "multigrain-publish"]["data"]["publish.sh"]


def packed(version="2", **files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{version}/{name.replace('_pb', '.pb')}")
            member.size, member.mode = len(content), 0o600
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def publish(tmp_path):
    """Starts the script that the publishing pod has, on a folder of its own."""
    script = named(documents("kubernetes/publish.yaml"))["ConfigMap", "multigrain-publish"]["data"]["publish.sh"]
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            ["bash", "-c", script, "publish.sh", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "MODELS": str(tmp_path / "models")},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


needs_bash = pytest.mark.skipif(not (shutil.which("bash") and shutil.which("tar")), reason="no bash, or no tar")
# random, so that half the stream is about half the file
MODEL = os.urandom(2**20)


@needs_bash
def test_a_version_is_published_whole(publish, tmp_path):
    models = tmp_path / "models"
    (models / ".2.incoming").mkdir(parents=True)
    (models / ".2.incoming" / "left by one that was killed").touch()
    stream = packed(saved_model_pb=MODEL, fingerprint_pb=b"f")
    process = publish("2")
    process.stdin.write(stream[: len(stream) // 2])
    process.stdin.flush()
    until = time.monotonic() + 30
    while not (models / ".2.incoming" / "2" / "saved_model.pb").exists() and time.monotonic() < until:
        time.sleep(0.02)
    # half of it came: to be seen under a name that is no version
    assert [path.name for path in models.iterdir()] == [".2.incoming"]
    output, error = process.communicate(stream[len(stream) // 2 :], timeout=30)
    assert (process.returncode, output, error) == (0, b"version 2 is published\n", b"")
    assert [path.name for path in models.iterdir()] == ["2"]
    assert {path.name: path.read_bytes() for path in (models / "2").iterdir()} == {
        "saved_model.pb": MODEL,
        "fingerprint.pb": b"f",
    }
    # the servers may run as someone else
    assert (models / "2" / "saved_model.pb").stat().st_mode & 0o777 == 0o644


@needs_bash
@pytest.mark.parametrize(
    ("version", "stream", "said"),
    [
        ("2", packed(saved_model_pb=MODEL)[:500_000], "not the whole of a tar -cz"),
        ("2", b"", "not the whole of a tar -cz"),
        ("2", packed(fingerprint_pb=b"f"), "2/saved_model.pb is not in what came"),
        ("2", packed("3", saved_model_pb=MODEL), "2/saved_model.pb is not in what came"),
        ("1", packed("1", saved_model_pb=MODEL), "version 1 is there already"),
        ("../2", packed(saved_model_pb=MODEL), "a version is a whole number, received '../2'"),
    ],
    ids=["cut off", "nothing", "no model", "another version", "there already", "no number"],
)
def test_what_is_not_a_whole_version_is_not_published(publish, tmp_path, version, stream, said):
    models = tmp_path / "models"
    (models / "1").mkdir(parents=True)
    (models / "1" / "saved_model.pb").write_bytes(b"first")
    process = publish(version)
    _, error = process.communicate(stream, timeout=30)
    assert process.returncode != 0
    assert said in error.decode()
    assert [path.name for path in models.iterdir()] == ["1"]
    assert (models / "1" / "saved_model.pb").read_bytes() == b"first"


def test_the_probes_are_answered(server):
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        request = container()[probe]["httpGet"]
        assert request["port"] == "rest"
        assert urllib.request.urlopen(server.rest + request["path"], timeout=30).status == 200


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl on the PATH")
def test_kustomize_builds_what_the_files_say():
    done = subprocess.run(["kubectl", "kustomize", str(SERVING)], capture_output=True, text=True, check=False)
    if "unknown command" in done.stderr:
        pytest.skip("this kubectl has no kustomize")
    assert done.returncode == 0, done.stderr
    built = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(done.stdout)}
    config = built.pop(("ConfigMap", "multigrain-config"))
    assert config["data"] == {path.name: path.read_text(encoding="utf-8") for path in SERVING.glob("*.config")}
    assert set(built) == set(manifests())
    assert {each["metadata"].get("namespace", "multigrain") for each in built.values()} == {"multigrain"}


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl on the PATH")
def test_a_pool_of_gpus_is_two_lines_more(tmp_path):
    shutil.copytree(SERVING, tmp_path / "serving")
    with (tmp_path / "serving" / "kustomization.yaml").open("a") as file:
        file.write("components:\n  - kubernetes/gpu\n")
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path / "serving")], capture_output=True, text=True, check=False
    )
    if "unknown command" in done.stderr:
        pytest.skip("this kubectl has no kustomize")
    assert done.returncode == 0, done.stderr
    built = named(yaml.safe_load_all(done.stdout))
    for manifest in built.values():
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    plain, pod = server_pod(), built["Deployment", "multigrain"]["spec"]["template"]["spec"]
    (only,) = pod["containers"]
    assert only["image"] == f"{container()['image']}-gpu"
    assert only["resources"]["limits"]["nvidia.com/gpu"] == only["resources"]["requests"]["nvidia.com/gpu"] == "1"
    assert pod["nodeSelector"]
    assert pod["tolerations"]
    # and all the rest is what it was
    assert [each for each in only["env"] if each["name"] == "CPUS"] == container()["env"]
    kept = ("args", "command", "ports", "lifecycle", "securityContext", "livenessProbe", "volumeMounts")
    assert {key: only[key] for key in kept} == {key: container()[key] for key in kept}
    assert [each["name"] for each in pod["volumes"]] == ["tmp", "models", "config"]
    assert pod["securityContext"] == plain["securityContext"]
    config = built["ConfigMap", "multigrain-config"]["data"]
    assert config.keys() == {path.name for path in SERVING.glob("*.config")}
    batching = text_format.Parse(config["batching.config"], message_class("BatchingParameters")())
    assert batching.max_batch_size.value == 64
    assert config["models.config"] == (SERVING / "models.config").read_text(encoding="utf-8")
    assert named(documents("kubernetes/gpu/autoscaling.yaml")).keys() <= built.keys()
