<#
.SYNOPSIS
A Kinesis endpoint on this machine: LocalStack for the stream, and DynamoDB, where KCL keeps its leases.

.DESCRIPTION
    .\scripts\localstack.ps1 start
    .\scripts\localstack.ps1 stop
    .\scripts\localstack.ps1 status
    .\scripts\localstack.ps1 logs -Mode narrative
    .\scripts\localstack.ps1 logs -Mode raw -Follow

LocalStack runs in Docker when there is an engine, else on the host, which needs Python 3.13 and npm. State and virtual
environments are under .local\localstack.
#>
[CmdletBinding()]
param(
    [Parameter(Position = 0)]
    [ValidateSet('start', 'stop', 'status', 'logs')]
    [string]$Command = 'status',

    [ValidateSet('narrative', 'raw')]
    [string]$Mode = 'narrative',

    [switch]$Follow
)

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
Set-Location (Split-Path -Parent $PSScriptRoot)

$Version = '4.14.0' # the last release that needs no account
$Image = "localstack/localstack:$Version"
$Name = 'sr-localstack'
$State = Join-Path (Get-Location) '.local/localstack'
$Windows = $env:OS -eq 'Windows_NT'

function Get-Setting([string]$Variable, [string]$Default) {
    $value = [Environment]::GetEnvironmentVariable($Variable)
    if ($value) { return $value }
    return $Default
}

$Port = Get-Setting 'SR_LOCALSTACK_PORT' '4566'
$DynamoDbPort = Get-Setting 'SR_LOCALSTACK_DYNAMODB_PORT' '4567'
$Stream = Get-Setting 'SR_KINESIS_STREAM' 'sr-control-bus'
$Region = Get-Setting 'SR_KINESIS_REGION' 'us-east-1'

function Stop-WithError([string]$Message) {
    [Console]::Error.WriteLine("error: $Message")
    exit 2
}

function Test-Docker {
    if ($env:SR_LOCALSTACK_HOST) { return $false }
    if (-not (Get-Command docker -ErrorAction SilentlyContinue)) { return $false }
    docker info *> $null
    return $LASTEXITCODE -eq 0
}

function Test-Answer([string]$At) {
    try {
        Invoke-WebRequest -UseBasicParsing -TimeoutSec 2 "http://127.0.0.1:$At/_localstack/health" | Out-Null
        return $true
    } catch {
        return $false
    }
}

function Wait-Answer([string]$At, [string]$What) {
    for ($try = 0; $try -lt 240; $try++) {
        if (Test-Answer $At) { return }
        Start-Sleep -Milliseconds 500
    }
    Stop-WithError "$What did not answer on port $At within two minutes; see $State"
}

function Get-Python([string]$Wanted) {
    $named = [Environment]::GetEnvironmentVariable('PYTHON' + $Wanted.Replace('.', ''))
    foreach ($candidate in @($named, "python$Wanted", 'python3', 'python')) {
        if (-not $candidate) { continue }
        if (-not (Get-Command $candidate -ErrorAction SilentlyContinue)) { continue }
        & $candidate -c "import sys; sys.exit(sys.version_info[:2] < tuple(map(int, '$Wanted'.split('.'))))" *> $null
        if ($LASTEXITCODE -eq 0) { return $candidate }
    }
    return $null
}

function Get-VenvPython([string]$Folder) {
    if ($Windows) { return Join-Path $Folder 'Scripts/python.exe' }
    return Join-Path $Folder 'bin/python'
}

function Install-Venv([string]$Folder, [string]$Python, [string[]]$Packages) {
    if (Test-Path (Join-Path $Folder '.complete')) { return }
    Write-Host "installing $($Packages[0]) ..."
    & $Python -m venv $Folder
    & (Get-VenvPython $Folder) -m pip install --quiet --disable-pip-version-check @Packages
    if ($LASTEXITCODE -ne 0) { Stop-WithError "pip could not install $($Packages[0])" }
    New-Item -ItemType File -Force (Join-Path $Folder '.complete') | Out-Null
}

function Start-Detached([string]$What, [string]$File, [string[]]$Arguments) {
    $options = @{
        FilePath               = $File
        RedirectStandardOutput = Join-Path $State "$What.log"
        RedirectStandardError  = Join-Path $State "$What.err.log"
        PassThru               = $true
    }
    if ($Arguments) { $options.ArgumentList = $Arguments }
    $process = Start-Process @options
    Set-Content -Path (Join-Path $State "$What.pid") -Value $process.Id
}

function Start-DynamoDb {
    if (Test-Answer $DynamoDbPort) { return }
    $python = Get-Python '3.11'
    if (-not $python) { Stop-WithError 'Python 3.11 or newer is needed; install it, or name it in PYTHON311' }
    $venv = Join-Path $State 'venv-ministack'
    Install-Venv $venv $python @('ministack==1.5.33', 'cbor2', 'cryptography')
    $env:GATEWAY_PORT = $DynamoDbPort
    $env:BIND_HOST = '127.0.0.1'
    $env:LOG_LEVEL = 'WARNING'
    $program = if ($Windows) { Join-Path $venv 'Scripts/ministack.exe' } else { Join-Path $venv 'bin/ministack' }
    Start-Detached 'dynamodb' $program @()
    Wait-Answer $DynamoDbPort 'DynamoDB (ministack)'
}

function Start-InDocker {
    docker rm --force $Name *> $null
    docker run --detach --name $Name --publish "127.0.0.1:${Port}:4566" --env SERVICES=kinesis,s3 `
        --env KINESIS_LATENCY=0 --env LS_LOG=info $Image | Out-Null
    if ($LASTEXITCODE -ne 0) { Stop-WithError "docker could not run $Image" }
}

function Start-OnHost {
    $python = Get-Python '3.13'
    if (-not $python) {
        Stop-WithError "LocalStack $Version on the host needs Python 3.13: install it or name it in PYTHON313, or start Docker"
    }
    if (-not (Get-Command npm -ErrorAction SilentlyContinue)) {
        Stop-WithError 'Kinesis in LocalStack needs npm (Node.js): install it, or start Docker'
    }
    $venv = Join-Path $State 'venv-localstack'
    Install-Venv $venv $python @("localstack-core[base-runtime]==$Version", 'moto-ext==5.1.54', 'cbor2<6',
        'pyopenssl==25.3.0', 'cryptography<47', 'service-identity', 'joserfc<1.8')
    $modules = Join-Path $State 'root/var/lib/localstack/lib/kinesis-local/0.5.2'
    if (-not (Test-Path (Join-Path $modules 'node_modules/kinesis-local/main.js'))) {
        New-Item -ItemType Directory -Force $modules | Out-Null
        npm install --silent --no-fund --no-audit --prefix $modules kinesis-local@0.5.2
        if ($LASTEXITCODE -ne 0) { Stop-WithError 'npm could not install kinesis-local' }
    }
    $env:OVERRIDE_IN_DOCKER = '0'
    $env:FILESYSTEM_ROOT = Join-Path $State 'root'
    $env:GATEWAY_LISTEN = "127.0.0.1:$Port"
    $env:SERVICES = 'kinesis,s3'
    $env:DISABLE_EVENTS = '1'
    $env:SKIP_SSL_CERT_DOWNLOAD = '1'
    $env:DNS_ADDRESS = '0'
    $env:LS_LOG = 'info'
    $env:KINESIS_LATENCY = '0'
    Start-Detached 'localstack' (Get-VenvPython $venv) @('-m', 'localstack.runtime.main')
}

function New-Stream {
    $python = Get-Python '3.11'
    if (-not $python) { Stop-WithError 'Python 3.11 or newer is needed; install it, or name it in PYTHON311' }
    $venv = Join-Path $State 'venv-boto'
    Install-Venv $venv $python @('boto3')
    if (-not $env:AWS_ACCESS_KEY_ID) { $env:AWS_ACCESS_KEY_ID = 'test' }
    if (-not $env:AWS_SECRET_ACCESS_KEY) { $env:AWS_SECRET_ACCESS_KEY = 'test' }
    $script = @'
import sys
import time

import boto3

endpoint, region, name = sys.argv[1:]
kinesis = boto3.client("kinesis", endpoint_url=endpoint, region_name=region)
try:
    kinesis.create_stream(StreamName=name, ShardCount=1)
except kinesis.exceptions.ResourceInUseException:
    pass
while kinesis.describe_stream_summary(StreamName=name)["StreamDescriptionSummary"]["StreamStatus"] != "ACTIVE":
    time.sleep(0.1)
'@
    $script | & (Get-VenvPython $venv) - "http://127.0.0.1:$Port" $Region $Stream
    if ($LASTEXITCODE -ne 0) { Stop-WithError "the stream $Stream could not be created" }
}

function Start-All {
    New-Item -ItemType Directory -Force $State | Out-Null
    Start-DynamoDb
    if (-not (Test-Answer $Port)) {
        if (Test-Docker) { Start-InDocker } else { Start-OnHost }
        Wait-Answer $Port 'LocalStack'
    }
    New-Stream
    Write-Host "Kinesis:  http://localhost:$Port  stream $Stream, region $Region"
    Write-Host "DynamoDB: http://localhost:$DynamoDbPort"
}

function Stop-All {
    if (Test-Docker) { docker rm --force $Name *> $null }
    foreach ($what in @('localstack', 'dynamodb')) {
        $file = Join-Path $State "$what.pid"
        if (Test-Path $file) {
            $id = [int](Get-Content $file)
            if ($Windows) { taskkill /PID $id /T /F *> $null } else { Stop-Process -Id $id -ErrorAction SilentlyContinue }
            Remove-Item $file
        }
    }
    Write-Host 'stopped'
}

function Show-Status {
    $code = 0
    if (Test-Answer $Port) { Write-Host "Kinesis answers on port $Port" } else { Write-Host 'Kinesis does not run'; $code = 3 }
    if (Test-Answer $DynamoDbPort) { Write-Host "DynamoDB answers on port $DynamoDbPort" } else { Write-Host 'DynamoDB does not run'; $code = 3 }
    exit $code
}

function Get-RawLog {
    $file = Join-Path $State 'localstack.log'
    if (Test-Docker) {
        docker inspect $Name *> $null
        if ($LASTEXITCODE -eq 0) {
            if ($Follow) { docker logs --follow $Name 2>&1 } else { docker logs $Name 2>&1 }
            return
        }
    }
    if (-not (Test-Path $file)) { Stop-WithError 'there is no log: LocalStack was not started by this script' }
    if ($Follow) { Get-Content -Wait $file } else { Get-Content $file }
}

function Show-Log {
    if ($Mode -eq 'raw') { Get-RawLog; return }
    $python = Get-Python '3.11'
    if (-not $python) { Stop-WithError 'narrative logs need Python 3.11 or newer; use -Mode raw' }
    Get-RawLog | & $python scripts/localstack_narrative.py
}

switch ($Command) {
    'start' { Start-All }
    'stop' { Stop-All }
    'status' { Show-Status }
    'logs' { Show-Log }
}
