<#
.SYNOPSIS
    Runs one tier of the tests, or all of them, in the environment that is installed already.
.DESCRIPTION
    tier0            unit and integration; no external service
    parity           S3 + Postgres: SR_TEST_S3_BUCKET and SR_TEST_PG_DSN must be set (see .env.example)
    localstack       Kinesis: SR_KINESIS_ENDPOINT_URL must be set (see .env.localstack.example)
    engine_fixture   the engine runs under runs/local_full_run-*
    all              each of them in turn; a tier whose variables are not set is named as not run
.EXAMPLE
    .\scripts\run_sr_tests.ps1 -Tier tier0
#>
[CmdletBinding()]
param(
    [ValidateSet('tier0', 'parity', 'localstack', 'engine_fixture', 'all')]
    [string]$Tier = 'tier0'
)

$ErrorActionPreference = 'Stop'
Set-Location (Join-Path $PSScriptRoot '..')

$Tests = 'tests/services/scenario_runner'
$Marks = [ordered]@{
    tier0          = 'not parity and not localstack and not engine_fixture'
    parity         = 'parity'
    localstack     = 'localstack'
    engine_fixture = 'engine_fixture'
}
$Needed = @{
    parity     = @('SR_TEST_S3_BUCKET', 'SR_TEST_PG_DSN')
    localstack = @('SR_KINESIS_ENDPOINT_URL')
}

$Python = Join-Path '.venv' 'Scripts/python.exe'
if (-not (Test-Path $Python)) { $Python = Join-Path '.venv' 'bin/python' }
if (-not (Test-Path $Python)) { $Python = 'python' }

function Get-Missing([string]$Name) {
    $missing = @()
    foreach ($variable in $Needed[$Name]) {
        if ($variable -and -not (Test-Path "Env:$variable")) { $missing += $variable }
    }
    return , $missing
}

function Invoke-Tier([string]$Name) {
    Write-Host "== $Name"
    & $Python -m pytest $Tests -m $Marks[$Name] -q | Out-Host
    return $LASTEXITCODE
}

$NotRun = @()
$Failed = 0
$Chosen = if ($Tier -eq 'all') { @($Marks.Keys) } else { @($Tier) }
foreach ($name in $Chosen) {
    $missing = Get-Missing $name
    if ($missing.Count -gt 0) {
        if ($Tier -ne 'all') {
            Write-Error "$name needs $($missing -join ', ')"
            exit 2
        }
        $NotRun += "${name}: $($missing -join ', ') not set"
        continue
    }
    $code = Invoke-Tier $name

    if ($code -ne 0) { $Failed = $code }
}
foreach ($line in $NotRun) { Write-Host "not run: $line" }
exit $Failed
