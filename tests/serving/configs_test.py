"""TF Serving's settings, each checked against what it configures."""

import inspect
import re
import shutil
import subprocess
import urllib.request
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving.server import LocalServer

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


def manifests():
    kustomization = documents("kustomization.yaml")[0]
    return {
        (found["kind"], found["metadata"]["name"]): found
        for name in kustomization["resources"]
        for found in documents(name)
    }


def container():
    (only,) = manifests()["Deployment", "multigrain"]["spec"]["template"]["spec"]["containers"]
    return only


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
    "tmpfs": list, "cap_drop": list, "security_opt": list, "cpus": int, "mem_limit": str, "pids_limit": int,
    "restart": str, "init": bool, "healthcheck": dict,
}  # fmt: skip


def test_compose():
    (compose,) = documents("compose.yaml")
    assert set(compose) == {"name", "services"}
    (service,) = compose["services"].values()
    assert {key: type(value) for key, value in service.items()} == COMPOSE_KEYS
    assert re.fullmatch(rf"\$\{{TF_SERVING_IMAGE:-{IMAGE}\}}", service["image"])
    assert service["command"] == container()["args"]
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
    flags = dict(flag.removeprefix("--").split("=") for flag in container()["args"])
    files = {value.removeprefix("/config/") for value in flags.values() if value.startswith("/config/")}
    (generator,) = documents("kustomization.yaml")[0]["configMapGenerator"]
    assert files == set(generator["files"]) == {path.name for path in SERVING.glob("*.config")}
    volumes = manifests()["Deployment", "multigrain"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "config", "configMap": {"name": generator["name"]}} in volumes


@pytest.mark.parametrize("path", sorted(path.name for path in (SERVING / "kubernetes").glob("*.yaml")))
def test_manifests_fit_kubernetes_schemas(path):
    assert f"kubernetes/{path}" in documents("kustomization.yaml")[0]["resources"]
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


def test_the_pod_is_bounded_and_may_do_little():
    pod = manifests()["Deployment", "multigrain"]["spec"]["template"]["spec"]
    assert re.fullmatch(IMAGE, container()["image"])
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    assert not pod["automountServiceAccountToken"]
    context = container()["securityContext"]
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert set(container()["resources"]["requests"]) == {"cpu", "memory"}
    assert "memory" in container()["resources"]["limits"]
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in container()["volumeMounts"]}
    assert mounts == {"/models": True, "/config": True, "/tmp": False}


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
