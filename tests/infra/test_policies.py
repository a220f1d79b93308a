"""What the deployed roles may do, by simulation: what SR calls is allowed, and what it never calls is denied.

The policies are those that IAM has after the deployment, so every reference in them is resolved. The simulator refuses
a request that cannot be: an action that does not take the resource, or a condition key that the action does not have.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from aws_emulator import ACCOUNT, READER, REGION, REPOSITORY, TOOLS, Deployed

from scenario_runner.service.permissions import NEEDED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

pytestmark = pytest.mark.infra

CLUSTER = f"arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/engines"
TASKS = f"arn:aws:ecs:{REGION}:{ACCOUNT}:task-definition"
QUEUE = f"arn:aws:sqs:{REGION}:{ACCOUNT}:engine-events"
ENGINE_ROLES = [f"arn:aws:iam::{ACCOUNT}:role/engine-{kind}" for kind in ("task", "execution")]
TO_ECS = {"iam:PassedToService": "ecs-tasks.amazonaws.com"}
#: Everything that a simulation knows of any request.
COMMON = {"aws:SecureTransport": "true", "aws:SourceAccount": ACCOUNT}


@dataclass(frozen=True)
class Call:
    """One request to AWS."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.action} on {self.resource} {dict(self.context) or ''}".rstrip()


def simulate(
    principal: str, policies: Sequence[Mapping[str, Any]], calls: Sequence[Call], resource_policy: Any = None
) -> list[str]:
    """The verdict about each call."""
    simulations = [
        {
            "identityPolicies": [{"name": str(at), "policy": policy} for at, policy in enumerate(policies)],
            "serviceControlPolicies": [], "resourceControlPolicies": [],
            **({"resourcePolicy": resource_policy} if resource_policy is not None else {}),
            "request": {
                "action": call.action, "principal": principal,
                "resource": {"resource": call.resource, "accountId": ACCOUNT},
                "contextVariables": {**COMMON, **call.context},
            },
        }
        for call in calls
    ]  # fmt: skip
    done = subprocess.run(
        ["node", "simulate.js"], cwd=TOOLS / "simulate", input=json.dumps(simulations), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    verdicts: list[str] = json.loads(done.stdout)
    assert len(verdicts) == len(calls)
    return verdicts


def of_role(deployed: Deployed, output: str, calls: Iterable[Call]) -> dict[str, str]:
    """The verdict about each call of a role, under the words for it. A key's own policy is asked with the role's."""
    arn, found = deployed.access[output], {}
    policies, (other, of_keys) = deployed.emulator.policies_of(arn), partition(calls)
    for wanted, policy in ((other, None), (of_keys, key_policy(deployed))):
        if wanted:
            found |= dict(zip(map(str, wanted), simulate(arn, policies, wanted, policy), strict=True))
    return found


def partition(calls: Iterable[Call]) -> tuple[list[Call], list[Call]]:
    """Calls of other services, and calls of KMS."""
    every = list(calls)
    of_keys = [call for call in every if call.action.startswith("kms:")]
    return [call for call in every if call not in of_keys], of_keys


def key_policy(deployed: Deployed) -> Any:
    found = deployed.client("kms").get_key_policy(KeyId=deployed.data["KeyArn"], PolicyName="default")
    return json.loads(found["Policy"])


def all_are(verdict: str, found: Mapping[Any, str]) -> None:
    assert {call: other for call, other in found.items() if other != verdict} == {}


# --- what SR calls: one entry for each permission of the code, on the resources of docs/guides/permissions.md


def needed(deployed: Deployed) -> dict[str, list[Call]]:
    """Every permission that the code names, with the requests that it is needed for."""
    ledger, stream = deployed.data["LedgerArn"], deployed.data["StreamArn"]
    application = deployed.access["ApplicationName"]
    lease = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{application}"
    siblings = [f"{lease}-CoordinatorState", f"{lease}-WorkerMetricStats"]
    consumer, cluster = f"{stream}/consumer/{application}:1", {"ecs:cluster": CLUSTER}
    task = f"arn:aws:ecs:{REGION}:{ACCOUNT}:task/engines/0123456789abcdef"
    written = [f"{ledger}/fraud-platform/sr/{name}" for name in ("run_status/a.json", ".private/marker")]
    calls = {
        "s3:ListBucket": [Call("s3:ListBucket", arn) for arn in (ledger, "arn:aws:s3:::engine-runs")],
        "s3:GetObject": [Call("s3:GetObject", arn) for arn in (*written, "arn:aws:s3:::engine-runs/prod/a/b.parquet")],
        "s3:PutObject": [Call("s3:PutObject", arn) for arn in written],
        "kinesis:DescribeStreamConsumer": [Call("kinesis:DescribeStreamConsumer", consumer)],
        "kinesis:SubscribeToShard": [Call("kinesis:SubscribeToShard", consumer)],
        "dynamodb:UpdateTable": [Call("dynamodb:UpdateTable", lease)],
        "dynamodb:UpdateContinuousBackups": [Call("dynamodb:UpdateContinuousBackups", lease)],
        "dynamodb:Query": [Call("dynamodb:Query", f"{lease}/index/LeaseOwnerToLeaseKeyIndex")],
        **{name: [Call(name, QUEUE)] for name in NEEDED if name.startswith("sqs:")},
        "ecs:RunTask": [Call("ecs:RunTask", f"{TASKS}/engine:{revision}", cluster) for revision in (1, 42)],
        "ecs:DescribeTasks": [Call("ecs:DescribeTasks", task, cluster)],
        "ecs:StopTask": [Call("ecs:StopTask", task, cluster)],
        "ecs:ListTasks": [Call("ecs:ListTasks", "*", cluster)],
        "iam:PassRole": [Call("iam:PassRole", arn, TO_ECS) for arn in ENGINE_ROLES],
        "cloudwatch:PutMetricData": [Call("cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": application})],
    }
    for permission in NEEDED.keys() - calls.keys():
        resources = [stream] if permission.startswith("kinesis:") else [lease, *siblings]
        calls[permission] = [Call(permission, resource) for resource in resources]
    return calls


def only_with(deployed: Deployed, *words: str) -> list[Call]:
    """Requests of permissions whose purpose says that they are needed only with a key of the profile."""
    optional = [name for name, why in NEEDED.items() if any(word in why for word in words)]
    return [call for name in optional for call in needed(deployed)[name]]


KEYS = ("kinesis_enhanced_fan_out", "engine_invoker", "evidence_events_queue_url")


def test_the_daemon_may_make_every_call_that_it_makes(full: Deployed) -> None:
    calls = needed(full)
    assert calls.keys() == NEEDED.keys()
    all_are("Allowed", of_role(full, "DaemonRoleArn", (call for each in calls.values() for call in each)))


def test_without_an_engine_and_without_fan_out_a_daemon_may_do_neither(plain: Deployed) -> None:
    optional = only_with(plain, *KEYS)
    assert len(optional) == 13
    all_are("ImplicitlyDenied", of_role(plain, "DaemonRoleArn", optional))
    rest = [call for calls in needed(plain).values() for call in calls if call not in optional]
    all_are("Allowed", of_role(plain, "DaemonRoleArn", rest))


def test_doctor_may_read_what_it_looks_at(full: Deployed) -> None:
    lease = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/full-app"
    calls = [Call("dynamodb:DescribeContinuousBackups", lease), Call("ecs:DescribeClusters", CLUSTER),
             Call("ecs:DescribeTaskDefinition", "*")]  # fmt: skip
    all_are("Allowed", of_role(full, "DaemonRoleArn", calls))


def test_a_one_shot_run_may_write_publish_and_launch_and_takes_nothing_from_the_stream(full: Deployed) -> None:
    calls = needed(full)
    publishing = {"kinesis:DescribeStreamSummary", "kinesis:PutRecords"}
    may = [name for name in calls if name in publishing or name.startswith(("s3:", "ecs:", "iam:"))]
    all_are("Allowed", of_role(full, "OneShotRoleArn", (call for name in may for call in calls[name])))
    not_ = [call for name in calls.keys() - set(may) for call in calls[name]]
    all_are("ImplicitlyDenied", of_role(full, "OneShotRoleArn", not_))


# --- keys


def key_calls(deployed: Deployed, *actions: str) -> list[Call]:
    services = [f"{name}.{REGION}.amazonaws.com" for name in ("s3", "kinesis")]
    return [
        Call(f"kms:{action}", deployed.data["KeyArn"], {"kms:ViaService": service})
        for action in actions
        for service in services
    ]


def test_the_key_may_be_used_through_the_stores_and_through_nothing_else(full: Deployed) -> None:
    for output in ("DaemonRoleArn", "OneShotRoleArn"):
        all_are("Allowed", of_role(full, output, key_calls(full, "Decrypt", "GenerateDataKey")))
        denied = [
            Call("kms:Decrypt", full.data["KeyArn"]),
            Call("kms:Decrypt", full.data["KeyArn"], {"kms:ViaService": f"rds.{REGION}.amazonaws.com"}),
            *key_calls(full, "ScheduleKeyDeletion", "PutKeyPolicy", "CreateGrant", "DisableKey"),
        ]
        all_are("ImplicitlyDenied", of_role(full, output, denied))


# --- what SR never calls


def never(deployed: Deployed) -> list[Call]:
    """Requests that no role of SR may make."""
    ledger, stream = deployed.data["LedgerArn"], deployed.data["StreamArn"]
    lease = f"arn:aws:dynamodb:{REGION}:{ACCOUNT}:table/{deployed.access['ApplicationName']}"
    document, other = f"{ledger}/fraud-platform/sr/run_facts_view/a.json", "arn:aws:s3:::other-bucket"
    cluster, elsewhere = {"ecs:cluster": CLUSTER}, {"ecs:cluster": f"{CLUSTER}-of-others"}
    role = f"arn:aws:iam::{ACCOUNT}:role"
    return [
        # the ledger: nothing is deleted, unlocked, opened or written beside it
        *(Call(f"s3:{action}", document) for action in
          ("DeleteObject", "DeleteObjectVersion", "PutObjectRetention", "BypassGovernanceRetention", "PutObjectAcl")),
        *(Call(f"s3:{action}", ledger) for action in
          ("DeleteBucket", "DeleteBucketPolicy", "PutBucketPolicy", "PutBucketVersioning", "PutLifecycleConfiguration",
           "PutBucketObjectLockConfiguration", "PutBucketPublicAccessBlock", "PutEncryptionConfiguration")),
        Call("s3:PutObject", f"{ledger}/elsewhere/a.json"),
        Call("s3:GetObject", f"{ledger}/elsewhere/a.json"),
        # engine runs are read, and only those under the prefix
        Call("s3:PutObject", "arn:aws:s3:::engine-runs/prod/a.json"),
        Call("s3:DeleteObject", "arn:aws:s3:::engine-runs/prod/a.json"),
        Call("s3:GetObject", "arn:aws:s3:::engine-runs/secret/a.json"),
        Call("s3:GetObject", "arn:aws:s3:::engine-runs/production/a.json"),
        Call("s3:GetObject", f"{other}/prod/a.json"),
        Call("s3:ListBucket", other),
        # the stream is neither deleted nor changed, and no other one is read
        *(Call(f"kinesis:{action}", stream) for action in
          ("DeleteStream", "DecreaseStreamRetentionPeriod", "StopStreamEncryption", "MergeShards", "SplitShard")),
        Call("kinesis:UpdateShardCount", "*"),
        *(Call(f"kinesis:{action}", f"{stream}-of-others") for action in ("GetRecords", "PutRecords")),
        Call("kinesis:SubscribeToShard", f"{stream}/consumer/others:1"),
        # nor the leases, nor tables of others
        Call("dynamodb:DeleteTable", lease),
        Call("dynamodb:DeleteTable", f"{lease}-CoordinatorState"),
        Call("dynamodb:UpdateTable", f"{lease}-WorkerMetricStats"),
        Call("dynamodb:Query", lease),
        Call("dynamodb:Query", f"{lease}/index/another"),
        *(Call(f"dynamodb:{action}", f"{lease}-of-others") for action in ("GetItem", "PutItem", "Scan")),
        # events: only of that queue, and nothing is put there
        *(Call(f"sqs:{action}", QUEUE) for action in ("SendMessage", "PurgeQueue", "SetQueueAttributes")),
        Call("sqs:ReceiveMessage", f"{QUEUE}-of-others"),
        # engines: only that family, in that cluster, with its own roles
        Call("ecs:RunTask", f"{TASKS}/another:1", cluster),
        Call("ecs:RunTask", f"{TASKS}/engine-of-others:1", cluster),
        Call("ecs:RunTask", f"{TASKS}/engine:1", elsewhere),
        Call("ecs:ListTasks", "*", elsewhere),
        Call("ecs:StopTask", f"arn:aws:ecs:{REGION}:{ACCOUNT}:task/engines-of-others/0123", elsewhere),
        Call("ecs:RegisterTaskDefinition", f"{TASKS}/engine:*"),
        Call("ecs:ExecuteCommand", f"arn:aws:ecs:{REGION}:{ACCOUNT}:task/engines/0123", cluster),
        Call("iam:PassRole", f"{role}/admin", TO_ECS),
        Call("iam:PassRole", deployed.access["DaemonRoleArn"], TO_ECS),
        Call("iam:PassRole", ENGINE_ROLES[0], {"iam:PassedToService": "lambda.amazonaws.com"}),
        # and no identities
        *(Call(f"iam:{action}", f"{role}/admin") for action in
          ("CreateRole", "PutRolePolicy", "AttachRolePolicy", "UpdateAssumeRolePolicy", "DeleteRole", "GetRole")),
        Call("sts:AssumeRole", f"{role}/admin"),
        Call("sts:AssumeRole", READER),
        Call("secretsmanager:GetSecretValue", deployed.data["DatabaseUserSecretArn"]),
        Call("cloudwatch:PutMetricData", "*", {"cloudwatch:namespace": "AWS/Kinesis"}),
        Call("rds:DeleteDBInstance", f"arn:aws:rds:{REGION}:{ACCOUNT}:db:{deployed.data['DatabaseId']}"),
    ]  # fmt: skip


@pytest.mark.parametrize("output", ["DaemonRoleArn", "OneShotRoleArn", "ReaderRoleArn"])
def test_no_role_may_do_what_sr_never_does(full: Deployed, output: str) -> None:
    calls = never(full)
    assert len(calls) == len(set(map(str, calls))) > 50
    all_are("ImplicitlyDenied", of_role(full, output, calls))


# --- readers


def test_a_reader_reads_ready_and_what_it_leads_to_and_nothing_beside_it(full: Deployed) -> None:
    ledger, stream = full.data["LedgerArn"], full.data["StreamArn"]
    surface = ("run_facts_view", "ready_signal", "run_status", "instance_receipts", "supersession")
    may = [
        *(Call("s3:GetObject", f"{ledger}/fraud-platform/sr/{name}/a.json") for name in surface),
        Call("s3:GetObject", "arn:aws:s3:::engine-runs/prod/a/b.parquet"),
        *(Call(f"kinesis:{action}", stream) for action in ("ListShards", "GetShardIterator", "GetRecords")),
        *key_calls(full, "Decrypt"),
    ]
    all_are("Allowed", of_role(full, "ReaderRoleArn", may))
    private = ("run_plan", "run_record", "quarantine", "interface_pack", "engine_invocations", "engine_attempt_logs",
               ".private", "run_facts_view_of_others")  # fmt: skip
    may_not = [
        *(Call("s3:GetObject", f"{ledger}/fraud-platform/sr/{name}/a.json") for name in private),
        *(Call("s3:PutObject", f"{ledger}/fraud-platform/sr/{name}/a.json") for name in surface),
        Call("s3:ListBucket", ledger),
        Call("kinesis:PutRecords", stream),
        *key_calls(full, "GenerateDataKey"),
    ]
    all_are("ImplicitlyDenied", of_role(full, "ReaderRoleArn", may_not))


# --- who may be what


def test_each_role_is_taken_on_by_its_own_service_or_reader_only(full: Deployed) -> None:
    ecs = f"arn:aws:ecs:{REGION}:{ACCOUNT}:task/any/0123"
    trusted = {
        "DaemonRoleArn": ("ecs-tasks.amazonaws.com", {"aws:SourceArn": ecs}),
        "OneShotRoleArn": ("ecs-tasks.amazonaws.com", {"aws:SourceArn": ecs}),
        "ExecutionRoleArn": ("ecs-tasks.amazonaws.com", {"aws:SourceArn": ecs}),
        "ScheduleRoleArn": ("scheduler.amazonaws.com", {}),
    }
    iam = full.client("iam")
    for output, (service, context) in trusted.items():
        arn = full.access[output]
        trust = iam.get_role(RoleName=arn.rpartition("/")[2])["Role"]["AssumeRolePolicyDocument"]
        taken = Call("sts:AssumeRole", arn, context)
        foreign = Call("sts:AssumeRole", arn, {**context, "aws:SourceAccount": "999999999999"})
        assert simulate(service, [], [taken, foreign], trust) == ["Allowed", "ImplicitlyDenied"], output
        assert simulate("lambda.amazonaws.com", [], [taken], trust) == ["ImplicitlyDenied"], output
        assert simulate(READER, [ASSUMES_ALL], [taken], trust) == ["ImplicitlyDenied"], output
    arn = full.access["ReaderRoleArn"]
    trust = iam.get_role(RoleName=arn.rpartition("/")[2])["Role"]["AssumeRolePolicyDocument"]
    assert simulate(READER, [ASSUMES_ALL], [Call("sts:AssumeRole", arn)], trust) == ["Allowed"]
    another = f"arn:aws:iam::{ACCOUNT}:role/another"
    assert simulate(another, [ASSUMES_ALL], [Call("sts:AssumeRole", arn)], trust) == ["ImplicitlyDenied"]


ASSUMES_ALL = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": "*"}],
}
ADMINISTRATOR = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


# --- the agent of ECS, schedules, and the engine


def test_the_agent_starts_tasks_and_reads_one_secret(full: Deployed) -> None:
    secret, group = full.data["DatabaseUserSecretArn"], full.data["LogGroupArn"].removesuffix(":*")
    via = {"kms:ViaService": f"secretsmanager.{REGION}.amazonaws.com"}
    may = [
        Call("ecr:GetAuthorizationToken", "*"),
        *(Call(f"ecr:{action}", REPOSITORY) for action in ("BatchGetImage", "GetDownloadUrlForLayer")),
        Call("secretsmanager:GetSecretValue", secret),
        Call("kms:Decrypt", full.data["KeyArn"], via),
        *(Call(f"logs:{action}", f"{group}:log-stream:daemon/a/b") for action in ("CreateLogStream", "PutLogEvents")),
    ]
    all_are("Allowed", of_role(full, "ExecutionRoleArn", may))
    may_not = [
        Call("secretsmanager:GetSecretValue", f"{secret}-other"),
        Call("secretsmanager:PutSecretValue", secret),
        Call("ecr:BatchGetImage", f"{REPOSITORY}-of-others"),
        Call("ecr:PutImage", REPOSITORY),
        Call("logs:DeleteLogStream", f"{group}:log-stream:daemon/a/b"),
        Call("logs:PutLogEvents", f"{group}-of-others:log-stream:a"),
        Call("s3:GetObject", f"{full.data['LedgerArn']}/fraud-platform/sr/run_status/a.json"),
    ]
    all_are("ImplicitlyDenied", of_role(full, "ExecutionRoleArn", may_not))


def test_a_schedule_starts_one_shot_runs_and_no_other_task(full: Deployed) -> None:
    roles = [full.access[name] for name in ("OneShotRoleArn", "ExecutionRoleArn")]
    may = [Call("ecs:RunTask", f"{TASKS}/scenario-runner-run:7"), *(Call("iam:PassRole", arn, TO_ECS) for arn in roles)]
    all_are("Allowed", of_role(full, "ScheduleRoleArn", may))
    may_not = [
        Call("ecs:RunTask", f"{TASKS}/engine:1"),
        Call("iam:PassRole", full.access["DaemonRoleArn"], TO_ECS),
        Call("iam:PassRole", roles[0], {"iam:PassedToService": "lambda.amazonaws.com"}),
    ]
    all_are("ImplicitlyDenied", of_role(full, "ScheduleRoleArn", may_not))


def test_the_policy_for_the_engine_reads_invocations_and_nothing_else(full: Deployed) -> None:
    policy, engine = full.emulator.managed_policy(full.access["InvocationsPolicyArn"]), ENGINE_ROLES[0]
    below = f"{full.data['LedgerArn']}/fraud-platform/sr"
    calls = [
        Call("s3:GetObject", f"{below}/engine_invocations/a.json"),
        Call("s3:GetObject", f"{below}/run_plan/a.json"),
        Call("s3:PutObject", f"{below}/engine_invocations/a.json"),
    ]
    assert simulate(engine, [policy], calls) == ["Allowed", "ImplicitlyDenied", "ImplicitlyDenied"]


def test_the_policy_for_producers_puts_on_the_stream_and_does_nothing_else(full: Deployed) -> None:
    policy, producer = (
        full.emulator.managed_policy(full.access["ProducerPolicyArn"]),
        f"arn:aws:iam::{ACCOUNT}:role/any",
    )
    stream, key = full.data["StreamArn"], full.data["KeyArn"]
    through = [{"kms:ViaService": f"{name}.{REGION}.amazonaws.com"} for name in ("kinesis", "s3")]
    may = [Call("kinesis:PutRecord", stream), Call("kinesis:PutRecords", stream)]
    assert simulate(producer, [policy], may) == ["Allowed"] * len(may)
    may_not = [
        Call("kinesis:PutRecords", f"{stream}-of-others"),
        *(Call(f"kinesis:{action}", stream) for action in ("GetRecords", "GetShardIterator", "DeleteStream")),
        Call("s3:GetObject", f"{full.data['LedgerArn']}/fraud-platform/sr/run_facts_view/a.json"),
        Call("s3:PutObject", f"{full.data['LedgerArn']}/fraud-platform/sr/ready_signal/a.json"),
    ]
    assert simulate(producer, [policy], may_not) == ["ImplicitlyDenied"] * len(may_not)
    of_key = [Call("kms:GenerateDataKey", key, context) for context in through]
    of_key += [Call("kms:GenerateDataKey", key), Call("kms:Decrypt", key, through[0])]
    assert simulate(producer, [policy], of_key, key_policy(full)) == ["Allowed", *["ImplicitlyDenied"] * 3]


# --- the bucket's own policy holds for everybody, administrators too


def test_nobody_deletes_from_the_ledger_or_reads_it_without_tls_or_writes_under_another_key(full: Deployed) -> None:
    bucket = json.loads(full.client("s3").get_bucket_policy(Bucket=full.data["LedgerBucket"])["Policy"])
    below, key = f"{full.data['LedgerArn']}/fraud-platform/sr/run_status/a.json", full.data["KeyArn"]
    kind, named = "s3:x-amz-server-side-encryption", "s3:x-amz-server-side-encryption-aws-kms-key-id"
    refused = [
        Call("s3:DeleteObject", below),
        Call("s3:DeleteObjectVersion", below),
        Call("s3:GetObject", below, {"aws:SecureTransport": "false"}),
        Call("s3:ListBucket", full.data["LedgerArn"], {"aws:SecureTransport": "false"}),
        Call("s3:GetObject", below, {"s3:TlsVersion": "1.1"}),
        Call("s3:PutObject", below, {kind: "AES256"}),
        Call("s3:PutObject", below, {kind: "aws:kms", named: f"{key}0"}),
    ]
    administrator = f"arn:aws:iam::{ACCOUNT}:role/admin"
    assert simulate(administrator, [ADMINISTRATOR], refused, bucket) == ["ExplicitlyDenied"] * len(refused)
    taken = [
        Call("s3:GetObject", below, {"s3:TlsVersion": "1.2"}),
        Call("s3:PutObject", below, {"s3:TlsVersion": "1.3"}),
        Call("s3:PutObject", below, {kind: "aws:kms", named: key}),
        Call("s3:DeleteObject", f"{full.data['LedgerArn']}/elsewhere/a.json"),
    ]
    assert simulate(administrator, [ADMINISTRATOR], taken, bucket) == ["Allowed"] * len(taken)
