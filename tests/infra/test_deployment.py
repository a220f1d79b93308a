"""What the emulator made of the templates, asked through the API of each service.

CREATE_COMPLETE proves nothing: an emulator drops a property that it does not know. So every resource is asked. What the
emulator loses is listed in docs/guides/aws.md, and asserted in the template itself by ``test_what_is_lost``.
"""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from aws_emulator import ACCOUNT, IMAGE, OF_EXPRESSIONS, QUEUE_URL, REGION, Deployed
from cloudformation import template

pytestmark = pytest.mark.infra


def test_the_key_rotates_and_has_its_name(full: Deployed) -> None:
    kms, key = full.client("kms"), full.data["KeyArn"]
    assert kms.describe_key(KeyId="alias/full")["KeyMetadata"]["Arn"] == key
    assert kms.get_key_rotation_status(KeyId=key)["KeyRotationEnabled"] is True


def test_the_stream_has_its_shards_and_its_retention(full: Deployed) -> None:
    summary = full.client("kinesis").describe_stream_summary(StreamName=full.data["StreamName"])
    found = summary["StreamDescriptionSummary"]
    assert (found["StreamStatus"], found["OpenShardCount"], found["RetentionPeriodHours"]) == ("ACTIVE", 2, 168)
    assert found["StreamARN"] == full.data["StreamArn"]


def test_the_ledger_keeps_versions_and_is_open_to_nobody(full: Deployed) -> None:
    s3, bucket = full.client("s3"), full.data["LedgerBucket"]
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    assert set(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    (rule,) = s3.get_bucket_ownership_controls(Bucket=bucket)["OwnershipControls"]["Rules"]
    assert rule == {"ObjectOwnership": "BucketOwnerEnforced"}
    policy = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])
    assert {statement["Sid"]: statement["Effect"] for statement in policy["Statement"]} == {
        "OnlyThroughTls": "Deny", "OnlyThroughTls12OrNewer": "Deny", "NoOtherEncryption": "Deny", "NoOtherKey": "Deny",
        "NobodyDeletes": "Deny",
    }  # fmt: skip


def test_the_authority_is_encrypted_kept_private_and_protected(full: Deployed) -> None:
    (found,) = full.client("rds").describe_db_instances(DBInstanceIdentifier=full.data["DatabaseId"])["DBInstances"]
    expected = {
        "Engine": "postgres", "EngineVersion": "17", "DBInstanceStatus": "available", "DBName": "scenario_runner",
        "MasterUsername": "sr_admin", "StorageEncrypted": True, "KmsKeyId": full.data["KeyArn"], "MultiAZ": True,
        "DeletionProtection": True, "PubliclyAccessible": False, "BackupRetentionPeriod": 35, "StorageType": "gp3",
        "AllocatedStorage": 100, "MaxAllocatedStorage": 1000, "IAMDatabaseAuthenticationEnabled": True,
        "AutoMinorVersionUpgrade": True, "CopyTagsToSnapshot": True, "PerformanceInsightsEnabled": True,
        "MonitoringInterval": 60, "CACertificateIdentifier": "rds-ca-rsa2048-g1",
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert (found["Endpoint"]["Address"], str(found["Endpoint"]["Port"])) == (
        full.data["DatabaseHost"],
        full.data["DatabasePort"],
    )
    groups = [group["VpcSecurityGroupId"] for group in found["VpcSecurityGroups"]]
    assert groups == [full.id_of("DatabaseSecurityGroup")]
    subnets = {subnet["SubnetIdentifier"] for subnet in found["DBSubnetGroup"]["Subnets"]}
    assert subnets == set(full.parameters["SubnetIds"].split(","))


def test_a_standby_of_the_authority_can_be_left_out(plain: Deployed) -> None:
    name, network = "small", {key: plain.parameters[key] for key in ("VpcId", "VpcCidr", "SubnetIds")}
    outputs = plain.emulator.deploy("data.yaml", name, {**network, "DatabaseMultiAZ": "false", "StreamShards": "1"})
    rds, kinesis = plain.client("rds"), plain.client("kinesis")
    (found,) = rds.describe_db_instances(DBInstanceIdentifier=outputs["DatabaseId"])["DBInstances"]
    assert (found["MultiAZ"], found["DeletionProtection"]) == (False, True)
    stream = kinesis.describe_stream_summary(StreamName=outputs["StreamName"])["StreamDescriptionSummary"]
    assert stream["OpenShardCount"] == 1


def test_the_authority_takes_only_tls(full: Deployed) -> None:
    group = full.id_of("DatabaseParameters")
    found = full.client("rds").describe_db_parameters(DBParameterGroupName=group, Source="user")["Parameters"]
    assert {item["ParameterName"]: item["ParameterValue"] for item in found} == {
        "rds.force_ssl": "1", "log_statement": "ddl", "log_min_duration_statement": "1000",
    }  # fmt: skip


def test_only_daemons_reach_the_authority_and_daemons_reach_nothing_else(full: Deployed) -> None:
    ids = [full.id_of(name) for name in ("ServiceSecurityGroup", "DatabaseSecurityGroup")]
    described = full.client("ec2").describe_security_groups(GroupIds=ids)["SecurityGroups"]
    groups = {item["GroupId"]: item for item in described}
    service, database = (groups[group] for group in ids)
    assert service["IpPermissions"] == []
    assert [(rule["FromPort"], rule["IpRanges"][0]["CidrIp"]) for rule in service["IpPermissionsEgress"]] == [
        (443, "0.0.0.0/0"), (5432, "10.0.0.0/16"),
    ]  # fmt: skip
    (rule,) = database["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"], rule["IpRanges"]) == (5432, 5432, [])
    assert [pair["GroupId"] for pair in rule["UserIdGroupPairs"]] == [service["GroupId"]]
    assert [rule["IpRanges"][0]["CidrIp"] for rule in database["IpPermissionsEgress"]] == ["127.0.0.1/32"]


def test_the_database_user_has_a_secret_under_the_key(full: Deployed) -> None:
    secrets, arn = full.client("secretsmanager"), full.data["DatabaseUserSecretArn"]
    assert secrets.describe_secret(SecretId=arn)["KmsKeyId"] == full.data["KeyArn"]
    value = json.loads(secrets.get_secret_value(SecretId=arn)["SecretString"])
    assert value["username"] == "scenario_runner"
    assert len(value["password"]) == 48


def test_logs_are_encrypted_and_end(full: Deployed) -> None:
    (group,) = full.client("logs").describe_log_groups(logGroupNamePrefix=full.data["LogGroupName"])["logGroups"]
    assert (group["retentionInDays"], group["kmsKeyId"]) == (365, full.data["KeyArn"])


def test_the_service_runs_its_daemons_in_private_subnets_and_rolls_back(full: Deployed) -> None:
    ecs, cluster = full.client("ecs"), full.service["ClusterName"]
    (settings,) = ecs.describe_clusters(clusters=[cluster], include=["SETTINGS"])["clusters"][0]["settings"]
    assert settings == {"name": "containerInsights", "value": "enabled"}
    (found,) = ecs.describe_services(cluster=cluster, services=[full.service["ServiceName"]])["services"]
    assert (found["desiredCount"], found["launchType"], found["enableExecuteCommand"]) == (2, "FARGATE", False)
    assert found["taskDefinition"] == full.service["DaemonTaskDefinition"]
    rollout = found["deploymentConfiguration"]
    assert rollout["deploymentCircuitBreaker"] == {"enable": True, "rollback": True}
    assert (rollout["minimumHealthyPercent"], rollout["maximumPercent"]) == (100, 200)
    network = found["networkConfiguration"]["awsvpcConfiguration"]
    assert network["assignPublicIp"] == "DISABLED"
    assert network["securityGroups"] == [full.data["ServiceSecurityGroupId"]]
    assert network["subnets"] == full.parameters["SubnetIds"].split(",")


@pytest.mark.parametrize(
    ("output", "role", "logical"),
    [
        ("DaemonTaskDefinition", "DaemonRoleArn", "DaemonTask"),
        ("OneShotTaskDefinition", "OneShotRoleArn", "OneShotTask"),
    ],
)
def test_a_task_is_told_where_everything_is(full: Deployed, output: str, role: str, logical: str) -> None:
    (expected,) = template("service.yaml")["Resources"][logical]["Properties"]["ContainerDefinitions"]
    described = full.client("ecs").describe_task_definition(taskDefinition=full.service[output])["taskDefinition"]
    assert (described["taskRoleArn"], described["executionRoleArn"]) == (
        full.access[role],
        full.access["ExecutionRoleArn"],
    )
    assert (described["networkMode"], described["requiresCompatibilities"]) == ("awsvpc", ["FARGATE"])
    (container,) = described["containerDefinitions"]
    assert {key: container[key] for key in ("image", "command", "user", "readonlyRootFilesystem", "stopTimeout")} == {
        "image": IMAGE, "command": expected["Command"], "user": "10001:10001", "readonlyRootFilesystem": True,
        "stopTimeout": 120,
    }  # fmt: skip
    assert container.get("entryPoint", []) == expected.get("EntryPoint", [])
    assert {item["name"]: item["value"] for item in container["environment"]} == {
        "SR_S3_BUCKET": full.data["LedgerBucket"], "SR_S3_REGION": REGION, "SR_KINESIS_REGION": REGION,
        "SR_KINESIS_STREAM": full.data["StreamName"], "SR_KINESIS_APPLICATION": "full-app",
        "SR_ENGINE_ROOTS": "s3://engine-runs/prod", "SR_AUTH_ALLOWLIST": "svc-a,svc-b",
        "SR_PG_HOST": full.data["DatabaseHost"], "SR_PG_PORT": full.data["DatabasePort"],
        "SR_PG_DATABASE": "scenario_runner", "SR_PG_CA_FILE": "/etc/scenario-runner/config/pg-ca.pem",
        "SR_PG_PASSWORD": "", "SR_EVIDENCE_EVENTS_QUEUE_URL": QUEUE_URL,
    }  # fmt: skip
    options = container["logConfiguration"]["options"]
    assert (options["awslogs-group"], options["mode"]) == (full.data["LogGroupName"], "non-blocking")


def test_the_age_of_records_is_that_of_all_readers_where_there_is_no_consumer_of_its_own(plain: Deployed) -> None:
    found = plain.client("cloudwatch").describe_alarms(AlarmNamePrefix="plain-service-IntakeBehind")["MetricAlarms"]
    assert [(alarm["MetricName"], alarm["Dimensions"]) for alarm in found] == [
        ("GetRecords.IteratorAgeMilliseconds", [{"Name": "StreamName", "Value": plain.data["StreamName"]}])
    ]


def test_each_alarm_watches_what_is_there(full: Deployed) -> None:
    found = full.client("cloudwatch").describe_alarms(AlarmNamePrefix="full-service-")["MetricAlarms"]
    topic = full.service["AlarmTopicArn"]
    assert len(found) == 18 - len(OF_EXPRESSIONS)
    assert {action for alarm in found for action in (*alarm["AlarmActions"], *alarm["OKActions"])} == {topic}
    metrics = {
        alarm["MetricName"]: (
            alarm["Namespace"], {item["Name"]: item["Value"] for item in alarm["Dimensions"]}, alarm["Threshold"],
            alarm["TreatMissingData"],
        )
        for alarm in found
    }  # fmt: skip
    stream, database = {"StreamName": full.data["StreamName"]}, {"DBInstanceIdentifier": full.data["DatabaseId"]}
    consumer = {**stream, "ConsumerName": full.access["ApplicationName"]}
    service = {"ClusterName": full.service["ClusterName"], "ServiceName": full.service["ServiceName"]}
    assert metrics == {
        "RunningTaskCount": ("ECS/ContainerInsights", service, 2, "breaching"),
        "SubscribeToShardEvent.MillisBehindLatest": ("AWS/Kinesis", consumer, 300_000, "breaching"),
        "WriteProvisionedThroughputExceeded": ("AWS/Kinesis", stream, 0, "notBreaching"),
        "FreeStorageSpace": ("AWS/RDS", database, 10_000_000_000, "breaching"),
        "CPUUtilization": ("AWS/RDS", database, 90, "missing"),
        **{name: ("full-service", {}, limit, "notBreaching") for name, limit in
           [("Defects", 0), ("Quarantined", 0), ("PublishFailures", 0), ("Waiting", 0), ("Errors", 0),
            ("JvmRestarts", 3), ("sr_loop_heartbeat_age_seconds", 420), ("sr_intake_oldest_record_age_seconds", 600),
            ("sr_oldest_due_run_age_seconds", 300), ("sr_outbox_oldest_age_seconds", 600)]},
        "sr_ready": ("full-service", {}, 1, "breaching"),
    }  # fmt: skip


def test_each_log_filter_counts_lines_of_the_log_group(full: Deployed) -> None:
    found = full.client("logs").describe_metric_filters(logGroupName=full.data["LogGroupName"])["metricFilters"]
    assert {item["metricTransformations"][0]["metricName"] for item in found} == {
        "Defects", "Quarantined", "PublishFailures", "Waiting", "Errors", "JvmRestarts", "sr_ready",
        "sr_loop_heartbeat_age_seconds", "sr_intake_oldest_record_age_seconds", "sr_oldest_due_run_age_seconds",
        "sr_outbox_oldest_age_seconds", "sr_runs_accepted_total", "sr_runs_rejected_total", "sr_runs_ready_total",
        "sr_runs_failed_total", "sr_runs_quarantined_total", "sr_runs_waiting", "sr_runs_waiting_by_deadline",
    }  # fmt: skip
    assert {item["metricTransformations"][0]["metricNamespace"] for item in found} == {"full-service"}
    values = {item["metricTransformations"][0]["metricName"]: item["metricTransformations"][0]["metricValue"]
              for item in found}  # fmt: skip
    assert (values["sr_ready"], values["Waiting"]) == ("$.gauges.sr_ready", "1")


def test_whoever_is_on_call_is_subscribed_and_nobody_where_no_address_is_given(full: Deployed, plain: Deployed) -> None:
    def subscribed(deployed: Deployed) -> list[tuple[str, str]]:
        topic = deployed.service["AlarmTopicArn"]
        found = deployed.client("sns").list_subscriptions_by_topic(TopicArn=topic)["Subscriptions"]
        return [(item["Protocol"], item["Endpoint"]) for item in found]

    assert subscribed(full) == [("email", "oncall@example.org")]
    assert subscribed(plain) == []


def test_what_is_optional_is_not_made_unless_it_is_asked_for(full: Deployed, plain: Deployed) -> None:
    optional = {"ReaderRoleArn", "InvocationsPolicyArn"}
    assert full.access.keys() - plain.access.keys() == optional
    assert plain.access.keys() <= full.access.keys()


def test_what_holds_state_outlives_its_stack(plain: Deployed) -> None:
    client, name = plain.client("cloudformation"), "deleted"
    network = {key: plain.parameters[key] for key in ("VpcId", "VpcCidr", "SubnetIds")}
    outputs = plain.emulator.deploy("data.yaml", name, network)
    client.delete_stack(StackName=name)
    client.get_waiter("stack_delete_complete").wait(StackName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 30})
    assert plain.client("s3").get_bucket_versioning(Bucket=outputs["LedgerBucket"])["Status"] == "Enabled"
    assert plain.client("kinesis").describe_stream_summary(StreamName=outputs["StreamName"])
    assert plain.client("rds").describe_db_instances(DBInstanceIdentifier=outputs["DatabaseId"])["DBInstances"]
    assert plain.client("kms").describe_key(KeyId=outputs["KeyArn"])["KeyMetadata"]["KeyState"] == "Enabled"
    assert plain.client("secretsmanager").describe_secret(SecretId=outputs["DatabaseUserSecretArn"])
    groups = plain.client("logs").describe_log_groups(logGroupNamePrefix=outputs["LogGroupName"])["logGroups"]
    assert len(groups) == 1


def test_a_stack_whose_outputs_are_in_use_cannot_be_deleted(plain: Deployed) -> None:
    client = plain.client("cloudformation")
    with suppress(client.exceptions.ClientError):  # refused at once, or the stack says it
        client.delete_stack(StackName="plain")
    status = client.describe_stacks(StackName="plain")["Stacks"][0]["StackStatus"]
    assert status in ("CREATE_COMPLETE", "DELETE_FAILED")


# --- what the emulator loses: docs/guides/aws.md has the same list


def test_what_is_lost(full: Deployed) -> None:
    """The template has it, and the emulator does not show it. Once it does, this test says so, and asks the API."""
    data, service = template("data.yaml")["Resources"], template("service.yaml")["Resources"]
    ledger, key = data["Ledger"]["Properties"], {"Fn::GetAtt": ["Key", "Arn"]}
    s3, bucket = full.client("s3"), full.data["LedgerBucket"]

    (rule,) = ledger["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert rule["ServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    (shown,) = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert shown["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "AES256"}

    rules = {item["Id"] for item in ledger["LifecycleConfiguration"]["Rules"]}
    assert rules == {"parts-that-were-never-put-together", "former-versions"}
    with pytest.raises(s3.exceptions.ClientError, match="NoSuchLifecycleConfiguration"):
        s3.get_bucket_lifecycle_configuration(Bucket=bucket)

    lock = ledger["ObjectLockConfiguration"]["Fn::If"][1]["Rule"]["DefaultRetention"]
    assert lock == {"Mode": {"Ref": "ObjectLockMode"}, "Days": {"Ref": "ObjectLockDays"}}
    with pytest.raises(s3.exceptions.ClientError, match="ObjectLockConfigurationNotFoundError"):
        s3.get_object_lock_configuration(Bucket=bucket)

    logging = ledger["LoggingConfiguration"]["Fn::If"][1]
    assert logging["DestinationBucketName"] == {"Ref": "AccessLogBucket"}
    assert "LoggingEnabled" not in s3.get_bucket_logging(Bucket=bucket)

    assert data["Stream"]["Properties"]["StreamEncryption"] == {"EncryptionType": "KMS", "KeyId": key}
    stream = full.client("kinesis").describe_stream_summary(StreamName=full.data["StreamName"])
    assert stream["StreamDescriptionSummary"]["EncryptionType"] == "NONE"

    database = data["Database"]["Properties"]
    assert database["MasterUserSecret"] == {"KmsKeyId": key}
    assert database["EnableCloudwatchLogsExports"] == ["postgresql", "upgrade"]
    (instance,) = full.client("rds").describe_db_instances(DBInstanceIdentifier=full.data["DatabaseId"])["DBInstances"]
    assert "MasterUserSecret" not in instance
    assert instance["EnabledCloudwatchLogsExports"] == []

    (container,) = service["DaemonTask"]["Properties"]["ContainerDefinitions"]
    described = full.client("ecs").describe_task_definition(taskDefinition=full.service["DaemonTaskDefinition"])
    (shown,) = described["taskDefinition"]["containerDefinitions"]
    assert container["LinuxParameters"] == {"Capabilities": {"Drop": ["ALL"]}}
    assert container["HealthCheck"]["Command"][:3] == ["CMD", "scenario-runner", "healthcheck"]
    assert (shown["secrets"], shown["linuxParameters"], shown["healthCheck"]) == ([{}, {}], {}, {})

    topic = full.client("sns").get_topic_attributes(TopicArn=full.service["AlarmTopicArn"])["Attributes"]
    assert "KmsMasterKeyId" not in topic
    assert service["AlarmTopic"]["Properties"]["KmsMasterKeyId"]


def test_the_account_is_that_of_the_emulator(full: Deployed) -> None:
    """The tests of policies write ARNs with this account."""
    found: Any = full.client("sts").get_caller_identity()
    assert found["Account"] == ACCOUNT
