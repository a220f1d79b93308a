#!/usr/bin/env bash
# The tools that check infra/aws without an account: cfn-lint, checkov, two emulators, and a simulator of IAM policies.
#
#   scripts/infra_tools.sh install   install what is missing into .local/infra; needs npm for the simulator
#   scripts/infra_tools.sh env       print the environment variables as shell code: eval "$(scripts/infra_tools.sh env)"
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/lib.sh

home=$PWD/.local/infra
servers=infra/local/parity-constraints.txt
checkov=infra/aws/tools/checkov-requirements.txt
simulate=infra/aws/tools/simulate

install_tools() {
  command -v npm >/dev/null 2>&1 || die "the simulator of policies needs npm (Node.js), and there is none"
  mkdir -p "$home"
  pip_into "$home/venv" "$home/venv/.installed" "$(cksum < "$servers") with moto" find_python --constraint "$servers" \
    cbor2 cfn-lint ministack 'moto[iam,s3,server]'
  # Apart: checkov pins versions that the others cannot have.
  pip_into "$home/venv-checkov" "$home/venv-checkov/.installed" "$(cksum < "$checkov")" find_python --requirement "$checkov"
  if ! cmp -s "$simulate/package-lock.json" "$home/simulate/.installed"; then
    mkdir -p "$home/simulate"
    cp "$simulate/package.json" "$simulate/package-lock.json" "$home/simulate/"
    npm ci --silent --no-fund --no-audit --prefix "$home/simulate" 1>&2 || die "npm could not install the simulator of policies"
    cp "$simulate/package-lock.json" "$home/simulate/.installed"
  fi
  cp "$simulate/simulate.js" "$home/simulate/"
}

case ${1:-} in
  install) install_tools ;;
  env) printf 'export SR_INFRA_TOOLS=%q\n' "$home" ;;
  *) die "usage: scripts/infra_tools.sh install|env" ;;
esac
