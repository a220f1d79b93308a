"""The configuration of KCL's MultiLangDaemon: its properties, made from a wiring profile, and the command that runs it.

The timings were measured (docs/adr/0015): with ``production`` a killed worker's shards are taken over within 21 s, and
a restarted worker reads again after 5 s. ``fast`` is for tests: it sends DynamoDB far more requests than is reasonable.
"""

import importlib.util
import os
import shutil
import sys
from collections.abc import Mapping
from typing import Final

from scenario_runner.contracts.errors import ConfigurationError, install_extra
from scenario_runner.contracts.times import MICROS, parse_instant, to_micros
from scenario_runner.profiles.wiring import Wiring

SHARD_WORKER_MODULE: Final = "scenario_runner.service.shard_worker"
"""What KCL starts for each shard. Named, not imported: the room of the service lies above this one."""

DRAIN_SECONDS: Final = 20
"""How long KCL waits for its record processors at a stop: time for one transaction, also on a slow authority."""

_MAIN_CLASS: Final = "software.amazon.kinesis.multilang.MultiLangDaemon"
#: A properties file is read as Latin-1; everything from here on is escaped, DEL included.
_ASCII_END: Final = 0x7F
_JVM_OPTIONS: Final = (
    "-XX:TieredStopAtLevel=1",  # half the start-up time; the JVM only moves bytes
    "-XX:+UseSerialGC",
    "-Xmx512m",
    "-XX:+ExitOnOutOfMemoryError",
)
_ALWAYS: Final = {
    "AwsCredentialsProvider": "DefaultCredentialsProvider",
    "clientVersionConfig": "CLIENT_VERSION_CONFIG_COMPATIBLE_WITH_2X",  # no leader: docs/adr/0015
    "skipShardSyncAtWorkerInitializationIfLeasesExist": "true",
    "callProcessRecordsEvenForEmptyRecordList": "true",  # says that nothing is left to read, and that KCL is alive
    "maxLeasesToStealAtOneTime": "1",
    "shutdownGraceMillis": str(DRAIN_SECONDS * 1000),
}
_TIMINGS: Final[Mapping[str, Mapping[str, int]]] = {
    "production": {
        "failoverTimeMillis": 5000,
        "shardSyncIntervalMillis": 1000,
        "parentShardPollIntervalMillis": 2000,
        "idleTimeBetweenReadsInMillis": 250,  # the service allows five reads a second and shard
        "workerMetricsReporterFreqInMillis": 30000,
    },
    "fast": {
        "failoverTimeMillis": 2000,
        "shardSyncIntervalMillis": 1,
        "parentShardPollIntervalMillis": 500,
        "idleTimeBetweenReadsInMillis": 200,
        "inMemoryWorkerMetricsCaptureFrequencyMillis": 250,
        "workerMetricsReporterFreqInMillis": 1000,
    },
}


def kcl_properties(wiring: Wiring, region: str, worker_id: str) -> dict[str, str]:
    """The properties of the MultiLangDaemon.

    Args:
        wiring: The profile; its control bus is a stream.
        region: Region of the stream.
        worker_id: The worker id, stable and unique.
    """
    assert wiring.control_bus_stream is not None
    properties = {
        "executableName": f"{os.path.basename(sys.executable)} -m {SHARD_WORKER_MODULE}",
        "applicationName": wiring.kinesis_application,
        "streamName": wiring.control_bus_stream,
        "workerId": worker_id,
        "regionName": region,
        "retrievalMode": "FANOUT" if wiring.kinesis_enhanced_fan_out else "POLLING",
        **_ALWAYS,
        **{key: str(value) for key, value in _TIMINGS[wiring.kinesis_timing].items()},
    }
    if wiring.kinesis_start_timestamp is None:
        properties["initialPositionInStream"] = wiring.kinesis_start_position
    else:
        micros = to_micros(parse_instant(wiring.kinesis_start_timestamp))
        properties["initialPositionInStreamExtended"] = str(micros // MICROS)
    if wiring.control_bus_endpoint_url:
        properties["kinesisEndpoint"] = wiring.control_bus_endpoint_url
    if wiring.dynamodb_endpoint_url:
        properties["dynamoDBEndpoint"] = wiring.dynamodb_endpoint_url
    if wiring.control_bus_endpoint_url or wiring.dynamodb_endpoint_url:
        properties["metricsLevel"] = "NONE"  # emulators have no CloudWatch
    else:
        properties |= {"leaseTablePitrEnabled": "true", "leaseTableDeletionProtectionEnabled": "true"}
    return properties


def render_properties(properties: Mapping[str, str]) -> str:
    """The text of a properties file as Java reads it: backslashes and all beyond ASCII are escaped."""
    return "".join(f"{key} = {_escaped(value)}\n" for key, value in properties.items())


def _escaped(text: str) -> str:
    units = text.replace("\\", "\\\\").encode("utf-16-be")
    codes = [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]
    return "".join(chr(code) if code < _ASCII_END else f"\\u{code:04x}" for code in codes)


def find_java(env: Mapping[str, str]) -> str:
    """The ``java`` command, from JAVA_HOME or the PATH.

    Raises:
        ConfigurationError: There is none.
    """
    home = env.get("JAVA_HOME")
    found = shutil.which(os.path.join(home, "bin", "java")) if home else shutil.which("java", path=env.get("PATH"))
    if found is None:
        where = f"JAVA_HOME is {home!r}, which has no bin/java" if home else "no 'java' on the PATH"
        raise ConfigurationError(
            "control_bus_kind 'kinesis'", where, "install a Java runtime (17 or newer), or correct JAVA_HOME"
        )
    return os.path.abspath(found)


def find_jars() -> str:
    """The folder of KCL's jars.

    Raises:
        ConfigurationError: ``kclpy-ext`` is not installed, or was installed without its jars.
    """
    spec = importlib.util.find_spec("amazon_kclpy")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    jars = os.path.join(folders[0], "jars") if folders else ""
    if not jars or not os.path.isdir(jars) or not any("multilang" in name for name in os.listdir(jars)):
        raise ConfigurationError("control_bus_kind 'kinesis'", "KCL's jars are not installed", install_extra("kinesis"))
    return jars


def jvm_command(wiring: Wiring, java: str, jars: str, properties_file: str, logging_file: str) -> list[str]:
    """The command that runs the MultiLangDaemon."""
    emulated = wiring.control_bus_endpoint_url is not None
    no_cbor = emulated and wiring.kinesis_start_timestamp is not None  # no emulator can read Java's times in CBOR
    options = (f"-Dlogback.configurationFile={logging_file}", "-cp", os.path.join(jars, "*"))
    return [
        java,
        *_JVM_OPTIONS,
        *(("-Daws.cborEnabled=false",) if no_cbor else ()),
        *options,
        _MAIN_CLASS,
        "--properties-file",
        properties_file,
    ]


def jvm_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The environment of the JVM, whose PATH begins with the folder of this Python interpreter.

    KCL splits ``executableName`` at white space, so the interpreter is named there without its folder, which may hold
    some, and is found by the PATH.
    """
    path = os.path.dirname(sys.executable) + os.pathsep + env.get("PATH", os.defpath)
    return {**env, "PATH": path, "PYTHONUNBUFFERED": "1"}
