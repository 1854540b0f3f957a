"""Default paths: the same for the same question, short, and never in a folder that another user could enter."""

from __future__ import annotations

import os
import stat

import pytest
from support import run_python

from ipcsrv import InvalidPath, default_path
from ipcsrv.platform.unix import folder as posix_folder

OTHER = 12345

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch, sock_dir: str) -> str:
    """A temporary folder of the test's own, and no other wishes."""
    for name in ("IPCSRV_RUNTIME_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", sock_dir)
    return sock_dir


def own(sock_dir: str) -> str:
    return f"{sock_dir}/ipcsrv-{os.geteuid()}"


def test_the_folder_is_made_for_this_user_alone(sock_dir: str) -> None:
    assert default_path("app") == f"{own(sock_dir)}/app.sock"
    assert stat.S_IMODE(os.stat(own(sock_dir)).st_mode) == 0o700
    assert default_path("app") == f"{own(sock_dir)}/app.sock"


def test_without_any_wish_the_folder_is_in_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR")
    asked = []
    monkeypatch.setattr(posix_folder, "_made", lambda folder: asked.append(folder) or folder)
    default_path("app")
    assert asked == [f"/tmp/ipcsrv-{os.geteuid()}"]


def test_a_short_key_can_be_read_in_the_name(sock_dir: str) -> None:
    assert default_path("app", "main-1.x") == f"{own(sock_dir)}/app+main-1.x.sock"


@pytest.mark.parametrize("key", ["/home/me/a repository", "UPPER", "k" * 200, "ключ", "..", "a/b", "\udcff", "a\0b"])
def test_any_other_key_is_hashed_into_a_short_plain_name(key: str) -> None:
    name = os.path.basename(default_path("app", key))
    assert name.startswith("app~") and name.endswith(".sock")
    assert len(name) == len("app~") + 20 + len(".sock")
    assert default_path("app", key) == default_path("app", key)


def test_different_questions_have_different_answers() -> None:
    keys = ["", "a", "A", "a-b", "a+b", "k" * 200, "k" * 201, "/a", "/A", "~", "."]
    apps = ["app", "app-a", "App", "app+a", "a" * 40, ".app"]
    paths = [default_path(app, key) for app in apps for key in keys]
    assert len({path.lower() for path in paths}) == len(paths)


def test_two_processes_agree_whatever_their_locale_and_hash_seed() -> None:
    source = "import ipcsrv, sys; sys.stdout.write(ipcsrv.default_path('app', 'Schlüssel/' + 'x' * 99))"
    answers = {run_python(f"import os\nos.environ['LC_ALL'] = {locale!r}\n{source}") for locale in ("C", "C.UTF-8")}
    assert answers == {default_path("app", "Schlüssel/" + "x" * 99)}


def test_an_application_needs_a_name() -> None:
    with pytest.raises(InvalidPath):
        default_path("")


def test_the_session_s_folder_is_preferred(sock_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir(f"{sock_dir}/run", 0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{sock_dir}/run")
    assert default_path("app") == f"{sock_dir}/run/ipcsrv/app.sock"
    assert stat.S_IMODE(os.stat(f"{sock_dir}/run/ipcsrv").st_mode) == 0o700


@pytest.mark.parametrize("fault", ["missing", "open to others", "relative"])
def test_a_session_s_folder_that_is_not_safe_is_passed_over(
    sock_dir: str, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    session = "run" if fault == "relative" else f"{sock_dir}/run"
    if fault == "open to others":
        os.mkdir(session)
        os.chmod(session, 0o755)
    monkeypatch.setenv("XDG_RUNTIME_DIR", session)
    assert default_path("app") == f"{own(sock_dir)}/app.sock"


@needs_root
def test_runtime_folder_of_another_user_is_ignored(
    sock_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkdir(f"{sock_dir}/run", 0o700)
    os.chown(f"{sock_dir}/run", OTHER, OTHER)
    monkeypatch.setenv("XDG_RUNTIME_DIR", f"{sock_dir}/run")
    assert default_path("app") == f"{own(sock_dir)}/app.sock"


def test_the_environment_and_then_the_argument_override(sock_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", sock_dir)
    monkeypatch.setenv("IPCSRV_RUNTIME_DIR", f"{sock_dir}/wish")
    assert default_path("app") == f"{sock_dir}/wish/app.sock"
    assert default_path("app", runtime_dir=f"{sock_dir}/argument") == f"{sock_dir}/argument/app.sock"


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_may_enter_is_refused_each_time(sock_dir: str, mode: int) -> None:
    default_path("app")
    os.chmod(own(sock_dir), mode)
    for _ in range(2):
        with pytest.raises(InvalidPath, match="chmod 700") as caught:
            default_path("app")
        assert caught.value.path == own(sock_dir)


@needs_root
def test_a_folder_of_another_user_is_refused(sock_dir: str) -> None:
    os.mkdir(own(sock_dir), 0o700)
    os.chown(own(sock_dir), OTHER, OTHER)
    with pytest.raises(InvalidPath, match=f"belongs to user {OTHER}"):
        default_path("app")


def test_a_link_in_the_place_of_the_folder_is_refused(sock_dir: str) -> None:
    os.mkdir(f"{sock_dir}/elsewhere", 0o700)
    os.symlink("elsewhere", own(sock_dir))
    with pytest.raises(InvalidPath, match="cannot be opened"):
        default_path("app")


def test_a_file_in_the_place_of_the_folder_is_refused(sock_dir: str) -> None:
    open(own(sock_dir), "w").close()
    with pytest.raises(InvalidPath):
        default_path("app")


def test_a_folder_that_others_could_replace_is_refused(sock_dir: str) -> None:
    os.chmod(sock_dir, 0o777)
    with pytest.raises(InvalidPath, match="not sticky"):
        default_path("app")
    os.chmod(sock_dir, 0o1777)
    assert default_path("app")


@needs_root
def test_folder_within_another_users_folder_is_refused(sock_dir: str) -> None:
    os.chown(sock_dir, OTHER, OTHER)
    with pytest.raises(InvalidPath, match="could replace"):
        default_path("app")


@pytest.mark.parametrize("wish", ["relative", "{}/missing/folder"])
def test_an_override_that_cannot_be_made_is_refused(sock_dir: str, wish: str) -> None:
    with pytest.raises(InvalidPath):
        default_path("app", runtime_dir=wish.format(sock_dir))
