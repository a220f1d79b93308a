# Shared by the scripts: messages, finding a Python, virtual environments, and servers in the background.
# shellcheck shell=bash

die() { printf 'error: %s\n' "$*" >&2; exit 2; }

step() { printf '\n== %s\n' "$*"; }

# first_python TEST CANDIDATES...: prints the first command for which the Python expression TEST holds; fails when none.
first_python() {
  local test=$1 candidate
  shift
  for candidate in "$@"; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c "import sys; sys.exit(not ($test))" >/dev/null 2>&1 || continue
    printf '%s\n' "$candidate"
    return 0
  done
  return 1
}

# find_python: prints a Python >= 3.11, from $PYTHON or the PATH.
find_python() {
  first_python 'sys.version_info >= (3, 11)' "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python \
    || die "Python 3.11 or newer is needed; install it, or name it in the environment variable PYTHON"
}

# pip_into VENV STAMP WANT FIND PIP_ARGS...: make the virtual environment VENV and install into it, unless the file STAMP
# says that WANT was installed. FIND is a command that prints the Python to make it with. Prints nothing when all is there.
pip_into() {
  local venv=$1 stamp=$2 want=$3 find=$4
  shift 4
  [ -x "$venv/bin/python" ] || "$("$find")" -m venv "$venv" || die "cannot create $venv"
  [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$want" ] || return 0
  printf 'installing into %s ...\n' "$venv" >&2
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" 1>&2 \
    || die "pip could not install into $venv; see above"
  printf '%s' "$want" > "$stamp"
}

# install EXTRAS: install the project into .venv when something that it depends on changed, and put that on the PATH.
install() {
  local extras=$1 venv=${SR_VENV:-.venv}
  pip_into "$venv" "$venv/.installed-${extras:-none}" "$(cat pyproject.toml constraints.txt | cksum)" find_python \
    --constraint constraints.txt --editable ".${extras:+[$extras]}"
  PATH="$PWD/$venv/bin:$PATH"
  export PATH
}

# prometheus_tools FOLDER: put prometheus and promtool on the PATH: those of the machine, else the distribution's package,
# unpacked into FOLDER. Nothing is installed and no service is started, so no privileges are needed. Fails without apt.
prometheus_tools() {
  local folder=$1
  if command -v promtool >/dev/null 2>&1 && command -v prometheus >/dev/null 2>&1; then return 0; fi
  if [ ! -x "$folder/usr/bin/promtool" ]; then
    command -v apt-get >/dev/null 2>&1 && command -v dpkg-deb >/dev/null 2>&1 || return 1
    mkdir -p "$folder"
    printf 'unpacking prometheus into %s ...\n' "$folder" >&2
    (
      cd "$folder"
      apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; } || exit 1
      for package in prometheus_*.deb; do dpkg-deb --extract "$package" . && rm "$package"; done
    ) >/dev/null 2>&1 || return 1
  fi
  PATH="$(cd "$folder/usr/bin" && pwd):$PATH"
  export PATH
}

# memory_folder MEGABYTES: prints a folder of this user that is in memory, has so much room, and where programs may run;
# fails where there is none. Containers often have 64 MB of it, and run no programs there.
memory_folder() {
  local shm=/dev/shm folder probe
  [ -w "$shm" ] && [ "$(df -Pm "$shm" | awk 'NR == 2 { print $4 }')" -ge "$1" ] || return 1
  [ "$(awk '/^MemAvailable:/ { print int($2 / 1024) }' /proc/meminfo)" -ge "$1" ] || return 1
  folder=$shm/sr-tests-$(id -u)
  mkdir -m 700 "$folder" 2>/dev/null || true
  [ -O "$folder" ] && [ ! -L "$folder" ] || return 1
  probe=$(mktemp "$folder/probe-XXXXXX") || return 1
  printf '#!/bin/sh\n' > "$probe"
  chmod +x "$probe"
  if ! "$probe" 2>/dev/null; then rm -f "$probe"; return 1; fi
  rm -f "$probe"
  printf '%s\n' "$folder"
}

# answers URL: true when an HTTP server answers there.
answers() { curl -fsS -o /dev/null --max-time 2 "$1" 2>/dev/null; }

# wait_until SECONDS COMMAND...: true as soon as the command succeeds; fails after that many seconds.
wait_until() {
  local tries=$(($1 * 5))
  shift
  until "$@"; do
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || return 1
    sleep 0.2
  done
}

# start_detached FOLDER NAME COMMAND...: start a server in a session of its own, which outlives this script. FOLDER holds
# its log (NAME.log) and its process id (NAME.pid).
start_detached() {
  local folder=$1 name=$2
  shift 2
  setsid nohup "$@" > "$folder/$name.log" 2>&1 < /dev/null &
  printf '%s' "$!" > "$folder/$name.pid"
}

# stop_detached FOLDER NAME WORD: end a server with everything that it started. WORD must be in its command line: its
# process id may mean another process by now.
stop_detached() {
  local pid
  pid=$(cat "$1/$2.pid" 2>/dev/null) || return 0
  if ps -p "$pid" -o args= 2>/dev/null | grep -qF "$3"; then kill -TERM -- "-$pid" 2>/dev/null || true; fi
  rm -f "$1/$2.pid"
}
