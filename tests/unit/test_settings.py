"""Settings: one table, four ways to set each, and errors that name the place."""

from __future__ import annotations

import functools
import io
import json
import os
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import support

from ipcsrv.cli import main
from ipcsrv.config import files, settings
from ipcsrv.config import values as _values
from ipcsrv.cpus import whole_cpus
from ipcsrv.errors import SettingsError

# A value of each setting that is not its default: as a keyword, and as the text of a flag, a variable and TOML.
SAMPLES: dict[str, tuple[Any, str]] = {
    "workers": (3, "3"),
    "start_method": ("spawn", "spawn"),
    "preload": (False, "off"),
    "backlog": (7, "7"),
    "max_request_size": (1 << 20, "1MiB"),
    "max_buffered_size": (1 << 28, "256MiB"),
    "max_response_size": (2000, "2000"),
    "read_timeout": (2.5, "2500ms"),
    "write_timeout": (90.0, "90"),
    "request_timeout": (300.0, "5m"),
    "startup_timeout": (3600.0, "1h"),
    "drain_timeout": (0.0, "0"),
    "max_requests": (1000, "1000"),
    "max_requests_jitter": (50, "50"),
    "max_rss": (1 << 30, "1G"),
    "idle_exit": (600.0, "10m"),
    "mode": (0o660, "0660"),
    "allow": (("uid:1000", "group:staff"), "1000,group:staff"),
    "insecure_dir": (True, "yes"),
    "log_level": ("debug", "debug"),
    "log_file": ("/var/log/x.log", "/var/log/x.log"),
    "log_format": ("json", "json"),
    "access_log": (True, "1"),
    "on_worker_start": ("app:start", "app:start"),
    "on_worker_stop": ("app.hooks:stop", "app.hooks:stop"),
    "on_request_start": ("app:Tracer.begin", "app:Tracer.begin"),
    "on_request_end": ("app:Tracer.end", "app:Tracer.end"),
    "control": (False, "false"),
    "name": ("indexer", "indexer"),
    "chdir": ("/srv", "/srv"),
    "executor": ("dask:tcp://10.0.0.5:8786", "dask:tcp://10.0.0.5:8786"),
    "executor_retries": (2, "2"),
    "upload_module": (True, "on"),
    "receive_descriptors": (True, "on"),
}
EVERY = sorted(SAMPLES)


def load(keywords: dict[str, Any] | None = None, environ: dict[str, str] | None = None, files: Any = ()) -> Any:
    return settings.load(keywords or {}, environ=environ or {}, files=map(str, files))


def flag_words(setting: settings.Setting, text: str) -> list[str]:
    """What a user types for a setting; a switch has no value."""
    if setting.kind is not _values.SWITCH:
        return [setting.flag, text]
    return [setting.flag if setting.parse(text) else setting.flag.replace("--", "--no-", 1)]


def test_every_setting_has_a_sample_here() -> None:
    assert set(EVERY) == {setting.name for setting in settings.TABLE}


@pytest.mark.parametrize("name", EVERY)
def test_setting_is_read_from_keyword_variable_file_and_flag(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting, (value, text) = settings.BY_NAME[name], SAMPLES[name]
    assert getattr(settings.make(**{name: value}), name) == value != setting.default
    by_variable, sources = load(environ={setting.variable: text})
    assert (getattr(by_variable, name), sources[name].where) == (value, f"IPCSRV_{name.upper()}")
    file = tmp_path / "ipcsrv.toml"
    file.write_text(f"# a comment\n{name} = {json.dumps(text)}\n")
    by_file, sources = load(files=[file])
    assert (getattr(by_file, name), str(sources[name])) == (value, f"{file}:2")
    monkeypatch.chdir(tmp_path)
    file.unlink()
    with redirect_stdout(io.StringIO()) as shown:
        assert main(["run", "--print-settings", *flag_words(setting, text)]) == 0
    line = next(line for line in shown.getvalue().splitlines() if line.split()[0] == name)
    assert line.split()[1:] == [setting.show(value), setting.flag]


@pytest.mark.parametrize("name", EVERY)
def test_what_a_setting_shows_it_reads_back(name: str) -> None:
    setting, (value, _) = settings.BY_NAME[name], SAMPLES[name]
    assert setting.parse(setting.show(value)) == value
    assert setting.parse(setting.show(setting.default)) == setting.default


def test_keyword_wins_over_variable_over_file(tmp_path: Path) -> None:
    file = tmp_path / "any.toml"
    file.write_text("workers = 2\nbacklog = 2\nname = 'two'\n")
    chosen, sources = load({"workers": 4}, {"IPCSRV_WORKERS": "3", "IPCSRV_BACKLOG": "3"}, [file])
    assert (chosen.workers, chosen.backlog, chosen.name) == (4, 3, "two")
    assert [sources[name].how for name in ("workers", "backlog", "name", "mode")] == [
        "keyword",
        "variable",
        "file",
        "default",
    ]


# -- configuration files ----------------------------------------------------------------------------------------------


def test_project_file_is_found_when_it_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.project_file(str(tmp_path)) is None
    (tmp_path / "pyproject.toml").write_text("[tool.ipcsrv]\nworkers = 1\n")
    assert files.project_file(str(tmp_path)) is None
    (tmp_path / "ipcsrv.toml").write_text("workers = 2\n")
    monkeypatch.chdir(tmp_path)
    assert files.project_file("") == "ipcsrv.toml"
    assert files.project_file(str(tmp_path)) == str(tmp_path / "ipcsrv.toml")


@pytest.mark.skipif(os.name == "nt", reason="modes of Unix")
@pytest.mark.parametrize(
    ("folder_mode", "mode", "reason"),
    [
        (0o755, 0o666, "others can write it (mode 0666, `chmod go-w` it)"),
        (0o755, 0o620, "others can write it (mode 0620"),
        (0o777, 0o600, "others can write its folder"),
        (0o1777, 0o622, "others can write it"),
        (0o1777, 0o644, None),
        (0o755, 0o600, None),
    ],
)
def test_project_file_is_refused_when_others_could_write_it(
    folder_mode: int, mode: int, reason: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "ipcsrv.toml"
    file.write_text("workers = 2\n")
    file.chmod(mode)
    tmp_path.chmod(folder_mode)
    if reason is None:
        assert files.project_file(str(tmp_path)) == str(file)
        return
    with pytest.raises(SettingsError, match=re.escape(reason)) as caught:
        files.project_file(str(tmp_path))
    assert str(file) in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "chown") or os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("given", ["file", "folder"])
def test_project_file_of_another_user_is_refused(given: str, tmp_path: Path) -> None:
    file = tmp_path / "ipcsrv.toml"
    file.write_text("workers = 2\n")
    os.chown(file if given == "file" else tmp_path, 65534, 65534)
    with pytest.raises(SettingsError, match="belongs to user 65534"):
        files.project_file(str(tmp_path))


@pytest.mark.skipif(os.name == "nt", reason="symbolic links of Unix")
@pytest.mark.parametrize("kind", ["symbolic link", "regular file"])
def test_project_file_that_is_no_plain_file_is_refused(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "ipcsrv.toml"
    if kind == "symbolic link":
        (tmp_path / "other").write_text("workers = 2\n")
        file.symlink_to(tmp_path / "other")
    else:
        os.mkfifo(file)
    with pytest.raises(SettingsError, match=f"is not trusted: it is (not )?a {kind}"):
        files.project_file(str(tmp_path))


def test_operands_of_a_file_are_no_settings(tmp_path: Path) -> None:
    file = tmp_path / "any.toml"
    file.write_text("path = './z.sock'\nhandler = 'zlib:compress'\nworkers = 2\n")
    assert files.operands(str(file)) == {"path": "./z.sock", "handler": "zlib:compress"}
    assert load(files=[file])[0].workers == 2
    file.write_text("# nothing to serve\nhandler = 7\n")
    with pytest.raises(SettingsError, match=r"any\.toml, line 2: handler: 7 is not text"):
        files.operands(str(file))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('path = "./s\\u0000x"', r"line 1: path: './s\\x00x' is not text"),
        ("a = " + "[" * 100_000, "not TOML: it is nested too deeply"),
        ("workers = " + "9" * 10_000, "not TOML: Exceeds the limit"),
        ("#" * (1 << 20) + "\n", "is larger than 1 MiB"),
        (None, "is not a regular file"),
    ],
)
def test_unusual_file_is_named_in_one_line(text: str | None, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "any.toml"
    if text is not None:
        file.write_text(text)
    elif hasattr(os, "mkfifo"):
        os.mkfifo(file)
    else:
        pytest.skip("this system has no named pipes in folders")
    with pytest.raises(SettingsError, match=rf"any\.toml[:,] {reason}"):
        files.operands(str(file))


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="descriptors have no names here")
def test_file_may_be_a_pipe_that_the_user_names(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"handler = 'zlib:compress'\nworkers = 2\n")
    os.close(writer)
    name = f"/dev/fd/{reader}"
    assert load(files=[Path(name)])[0].workers == 2
    assert files.operands(name) == {"handler": "zlib:compress"}
    os.close(reader)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        pytest.param("max_rss", 10**400, f"{10**400} is not a size such as 4096, 64MiB or 1G", id="no float"),
        ("workers", -1, "-1 is below 0"),
        ("workers", 1025, "1025 is above 1024"),
        ("workers", 2.5, "2.5 is not a whole number"),
        ("workers", True, "True is not a whole number"),
        ("workers", "many", "'many' is not a whole number"),
        ("backlog", 0, "0 is below 1"),
        ("backlog", None, "None is not a whole number"),
        ("max_request_size", "12 parsecs", "'12 parsecs' is not a size such as 4096, 64MiB or 1G"),
        ("max_request_size", "0", "'0' is below 1"),
        ("max_rss", "1K", "'1K' is below 1MiB"),
        ("read_timeout", "0", "'0' is below 0.001s"),
        ("read_timeout", float("nan"), "nan is not a time such as 30, 30s, 250ms, 5m or 1h"),
        ("read_timeout", float("inf"), "inf is not a time such as 30, 30s, 250ms, 5m or 1h"),
        ("idle_exit", "-5", "'-5' is not a time such as 30, 30s, 250ms, 5m or 1h"),
        ("idle_exit", "900d", "'900d' is above 365d"),
        ("mode", 600, "600 is not a mode in octal such as 0600 or 0o660, at most 0777"),
        ("mode", "u=rw", "'u=rw' is not a mode in octal such as 0600 or 0o660, at most 0777"),
        ("allow", "root:x", "'root:x' is not a list of uid:N, gid:N, user:NAME, group:NAME or Windows SIDs"),
        ("allow", 1.5, "1.5 is not a list of users or groups"),
        ("start_method", "thread", "'thread' is not one of auto, fork, forkserver, spawn"),
        ("preload", "perhaps", "'perhaps' is neither on nor off"),
        ("name", "", "'' is not text"),
        ("log_file", 7, "7 is not text"),
        ("on_worker_start", "nothing here", "'nothing here' is neither MODULE:CALLABLE nor a callable"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_the_reason(name: str, value: Any, reason: str) -> None:
    if settings.BY_NAME[name].nothing and value == "":
        assert getattr(settings.make(**{name: value}), name) is None
        return
    with pytest.raises(SettingsError) as caught:
        settings.make(**{name: value})
    assert str(caught.value) == f"{name}: {reason}"
    assert caught.value.name == name


def test_an_unknown_keyword_names_the_nearest_setting() -> None:
    with pytest.raises(SettingsError) as caught:
        settings.make(worker=3)
    assert str(caught.value) == "worker: there is no such setting; did you mean `workers`?"


def test_a_name_like_no_setting_at_all_gets_no_suggestion() -> None:
    with pytest.raises(SettingsError) as caught:
        settings.make(zzz=3)
    assert (caught.value.suggestion, str(caught.value)) == (None, "zzz: there is no such setting")


def test_unknown_key_in_a_file_names_line_and_nearest_setting(tmp_path: Path) -> None:
    file = tmp_path / "any.toml"
    file.write_text("# idle_exti = 1\nworkers = 2\n\nidle_exti = 5\n")
    with pytest.raises(SettingsError) as caught:
        load(files=[file])
    assert str(caught.value) == f"{file}, line 4: idle_exti: there is no such setting; did you mean `idle_exit`?"
    assert (caught.value.source, caught.value.line, caught.value.suggestion) == (str(file), 4, "idle_exit")


def test_key_is_named_without_a_line_when_several_look_like_it(tmp_path: Path) -> None:
    file = tmp_path / "any.toml"
    file.write_text('name = """\nmode = 600\n"""\nmode = 600\n')
    with pytest.raises(SettingsError, match=r"any\.toml: mode: 600 is not a mode"):
        load(files=[file])


def test_a_wrong_value_in_a_file_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "ipcsrv.toml"
    file.write_text("workers = 2\nmode = 600\n")
    with pytest.raises(SettingsError, match=r"ipcsrv\.toml, line 2: mode: 600 is not a mode"):
        load(files=[file])


def test_a_key_may_be_written_with_dashes_or_quotes(tmp_path: Path) -> None:
    file = tmp_path / "ipcsrv.toml"
    file.write_text('idle-exit = "5m"\n"max-rss" = "2G"\n')
    chosen, sources = load(files=[file])
    assert (chosen.idle_exit, chosen.max_rss, sources["max_rss"].line) == (300.0, 2 << 30, 2)


def test_a_table_where_a_value_belongs_is_refused_at_its_line(tmp_path: Path) -> None:
    file = tmp_path / "ipcsrv.toml"
    file.write_text("workers = 2\n[mode]\nx = 1\n")
    with pytest.raises(SettingsError, match=r"line 2: mode: \{'x': 1\} is not a mode"):
        load(files=[file])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("workers = = 3\n", r", line 1: not TOML: Invalid value"),
        ("name = '\xff'", r": cannot be read: .*invalid start byte"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named(tmp_path: Path, text: str, reason: str) -> None:
    file = tmp_path / "any.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsError, match=f"^{re.escape(str(file))}{reason}"):
        load(files=[file])


def test_a_file_that_was_named_and_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read: No such file or directory"):
        load(files=[tmp_path / "nowhere.toml"])


def test_variable_that_looks_misspelled_is_refused() -> None:
    load(environ={"IPCSRV_DATABASE_URL": "x", "WORKERS": "many"})
    with pytest.raises(SettingsError, match=r"IPCSRV_WORKRES: there is no such setting; did you mean `workers`\?"):
        load(environ={"IPCSRV_WORKRES": "3"})


def test_a_wrong_value_in_a_variable_names_the_variable() -> None:
    with pytest.raises(SettingsError) as caught:
        load(environ={"IPCSRV_WORKERS": "many"})
    assert (str(caught.value), caught.value.name) == ("IPCSRV_WORKERS: 'many' is not a whole number", "workers")


def test_max_requests_takes_its_jitter_after_a_colon() -> None:
    chosen = settings.make(max_requests="1000:50")
    assert (chosen.max_requests, chosen.max_requests_jitter) == (1000, 50)
    with pytest.raises(SettingsError, match="max_requests: 'x' is not a whole number"):
        load({"max_requests": "1000:x"})


@pytest.mark.parametrize("word", ["none", "auto", "", "None"])
def test_none_in_words_is_none_where_that_is_allowed(word: str) -> None:
    assert settings.make(workers=word, request_timeout=word, log_file=word) == settings.make()


def test_settings_go_through_json_unchanged() -> None:
    chosen = settings.make(**{name: value for name, (value, _) in SAMPLES.items()})
    assert settings.make(**json.loads(json.dumps(chosen.to_dict()))) == chosen


def test_a_hook_that_is_a_callable_is_shown_by_its_name() -> None:
    chosen = settings.make(on_worker_start=support.run_python)
    assert chosen.on_worker_start is support.run_python
    assert chosen.to_dict()["on_worker_start"] == "support:run_python"


def test_a_hook_without_a_name_is_not_shown_by_that_of_something_else() -> None:
    chosen = settings.make(on_worker_start=functools.partial(support.run_python, ""))
    shown = chosen.to_dict()["on_worker_start"]
    assert shown == "functools:partial (an object)"
    with pytest.raises(SettingsError, match="on_worker_start"):
        settings.make(on_worker_start=shown)


def test_a_path_object_is_as_good_as_text(tmp_path: Path) -> None:
    assert settings.make(log_file=tmp_path).log_file == str(tmp_path)


def test_log_file_takes_every_name_of_a_standard_stream() -> None:
    names = {"-": "/dev/stderr", "/dev/stderr": "/dev/stderr", "/proc/self/fd/2": "/dev/stderr",
             "/dev/stdout": "/dev/stdout", "/dev/fd/1": "/dev/stdout"}  # fmt: skip
    assert {name: settings.make(log_file=name).log_file for name in names} == names


def test_what_depends_on_the_machine_is_filled_in_when_asked() -> None:
    resolved = settings.make().resolved("fork")
    assert (resolved.workers, resolved.start_method) == (whole_cpus(), "fork")
    chosen = settings.make(workers=0, start_method="spawn")
    assert chosen.resolved("fork") == chosen


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        settings.make().workers = 3  # type: ignore[misc]
