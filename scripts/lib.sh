# Shared by the scripts: a virtual environment of the project's own, installed from the pinned constraints.
# shellcheck shell=bash

die() { printf 'error: %s\n' "$*" >&2; exit 2; }

# find_python: a Python >= 3.11, from $PYTHON or the PATH.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return 0
    fi
  done
  die "Python 3.11 or newer is needed; install it, or name it in the environment variable PYTHON"
}

# install EXTRAS: install the project into .venv when something it depends on changed. Prints nothing when it is there.
install() {
  local extras=$1 venv=${SR_VENV:-.venv} stamp want
  [ -x "$venv/bin/python" ] || "$(find_python)" -m venv "$venv" || die "cannot create $venv"
  stamp="$venv/.installed-${extras:-none}"
  want=$(cat pyproject.toml constraints.txt | cksum)
  if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$want" ]; then
    printf 'installing into %s ...\n' "$venv" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
      --editable ".${extras:+[$extras]}" 1>&2 || die "pip could not install the project; see above"
    printf '%s' "$want" > "$stamp"
  fi
  PATH="$PWD/$venv/bin:$PATH"
  export PATH
}
