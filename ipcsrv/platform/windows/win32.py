"""Calls of Windows that `_winapi` lacks, with their types declared; and the identities (SIDs) of processes and pipes.

Used by both halves of the Windows seam, in every process.  Whatever `_winapi` has is called there: it costs no import
of ctypes and lets other threads run meanwhile.  Nothing here knows what a server or a request is.
"""

from __future__ import annotations

import sys

assert sys.platform == "win32"

import _winapi
import ctypes
from ctypes import POINTER, byref, c_int, c_void_p, c_wchar_p
from ctypes.wintypes import BOOL, DWORD, HANDLE, LPWSTR

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SYSTEM_SID = "S-1-5-18"
ADMINISTRATORS_SID = "S-1-5-32-544"  # owns what an elevated process creates without saying otherwise

INVALID_HANDLE = c_void_p(-1).value
_SDDL_REVISION_1 = 1
_SE_KERNEL_OBJECT = 6
_OWNER_SECURITY_INFORMATION = 1
_DACL_SECURITY_INFORMATION = 4
_TOKEN_QUERY = 8
_TOKEN_USER = 1
_PROCESS_QUERY_LIMITED_INFORMATION = 0x1000

_kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
_advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)


class SecurityAttributes(ctypes.Structure):
    """SECURITY_ATTRIBUTES; `descriptor` belongs to the `SecurityDescriptor` that made it."""

    _fields_ = (("length", DWORD), ("descriptor", c_void_p), ("inherit", BOOL))


def _checked(result: Any, function: Any, arguments: Any) -> Any:
    """ctypes' errcheck: a null or invalid result is an OSError with its winerror."""
    if result is None or result in (0, INVALID_HANDLE):
        raise ctypes.WinError(ctypes.get_last_error())
    return result


def declare(library: ctypes.WinDLL, name: str, restype: Any, *argtypes: Any, check: bool = True) -> Any:
    """A function of a system library with its types; with `check`, its failure raises OSError."""
    function = getattr(library, name)
    function.restype, function.argtypes = restype, argtypes
    if check:
        function.errcheck = _checked
    return function


def declare_kernel32(name: str, restype: Any, *argtypes: Any, check: bool = True) -> Any:
    """A function of kernel32, where nearly all calls of the seam live."""
    return declare(_kernel32, name, restype, *argtypes, check=check)


_LocalFree = declare(_kernel32, "LocalFree", c_void_p, c_void_p, check=False)
_OpenProcess = declare(_kernel32, "OpenProcess", HANDLE, DWORD, BOOL, DWORD)
_GetNamedPipeServerProcessId = declare(_kernel32, "GetNamedPipeServerProcessId", BOOL, HANDLE, POINTER(DWORD))
_GetNamedPipeClientProcessId = declare(_kernel32, "GetNamedPipeClientProcessId", BOOL, HANDLE, POINTER(DWORD))
_OpenProcessToken = declare(_advapi32, "OpenProcessToken", BOOL, HANDLE, DWORD, POINTER(HANDLE))
_OpenThreadToken = declare(_advapi32, "OpenThreadToken", BOOL, HANDLE, DWORD, BOOL, POINTER(HANDLE))
_GetCurrentThread = declare(_kernel32, "GetCurrentThread", HANDLE, check=False)
_ImpersonateNamedPipeClient = declare(_advapi32, "ImpersonateNamedPipeClient", BOOL, HANDLE)
_RevertToSelf = declare(_advapi32, "RevertToSelf", BOOL)
_GetTokenInformation = declare(_advapi32, "GetTokenInformation", BOOL, HANDLE, c_int, c_void_p, DWORD, POINTER(DWORD))
_ConvertSidToStringSid = declare(_advapi32, "ConvertSidToStringSidW", BOOL, c_void_p, POINTER(LPWSTR))
_SddlToDescriptor = declare(
    _advapi32, "ConvertStringSecurityDescriptorToSecurityDescriptorW", BOOL,
    c_wchar_p, DWORD, POINTER(c_void_p), c_void_p,
)  # fmt: skip
_DescriptorToSddl = declare(
    _advapi32, "ConvertSecurityDescriptorToStringSecurityDescriptorW", BOOL,
    c_void_p, DWORD, DWORD, POINTER(LPWSTR), c_void_p,
)  # fmt: skip
_LookupAccountName = declare(
    _advapi32, "LookupAccountNameW", BOOL,
    c_wchar_p, c_wchar_p, c_void_p, POINTER(DWORD), c_wchar_p, POINTER(DWORD), POINTER(c_int),
)  # fmt: skip
_GetSecurityInfo = declare(
    _advapi32, "GetSecurityInfo", DWORD,
    HANDLE, c_int, DWORD, *[POINTER(c_void_p)] * 5, check=False,
)  # fmt: skip


_ntdll = ctypes.WinDLL("ntdll")
_NtQueryInformationFile = declare(
    _ntdll, "NtQueryInformationFile", ctypes.c_long, HANDLE, c_void_p, c_void_p, DWORD, c_int, check=False
)
_FILE_PIPE_LOCAL_INFORMATION = 24
_STATE_OF_PIPE = 8  # which of the ten numbers of FILE_PIPE_LOCAL_INFORMATION
_CONNECTED = 3  # FILE_PIPE_CONNECTED_STATE


class SecurityDescriptor:
    """A security descriptor from its SDDL text, for as long as the object lives."""

    def __init__(self, sddl: str) -> None:
        self._pointer = c_void_p()
        _SddlToDescriptor(sddl, _SDDL_REVISION_1, byref(self._pointer), None)
        self.attributes = SecurityAttributes(ctypes.sizeof(SecurityAttributes), self._pointer.value, False)

    def sddl(self) -> str:
        """Owner and access list, as Windows writes them."""
        return _sddl(self._pointer)

    def __del__(self) -> None:
        if self._pointer.value:
            _LocalFree(self._pointer)


def server_process(pipe: int) -> int:
    """The process that made the first instance of the pipe that a client has open."""
    pid = DWORD()
    _GetNamedPipeServerProcessId(pipe, byref(pid))
    return pid.value


def client_process(pipe: int) -> int:
    """The process at the other end of a server's instance."""
    pid = DWORD()
    _GetNamedPipeClientProcessId(pipe, byref(pid))
    return pid.value


def is_connected(pipe: int) -> bool:
    """Whether the other end of a pipe is open, also while there is something of it to read."""
    facts, status = (DWORD * 10)(), (c_void_p * 2)()
    failed = _NtQueryInformationFile(pipe, status, facts, ctypes.sizeof(facts), _FILE_PIPE_LOCAL_INFORMATION)
    return not failed and facts[_STATE_OF_PIPE] == _CONNECTED


def own_sid() -> str:
    """The SID of the user that this process runs as; asked once."""
    global _own_sid
    if _own_sid is None:
        _own_sid = _process_sid(_winapi.GetCurrentProcess())
    return _own_sid


_own_sid: str | None = None


def sid_of_process(pid: int) -> str:
    """The SID of the user that a process runs as; OSError where it cannot be asked."""
    process = _OpenProcess(_PROCESS_QUERY_LIMITED_INFORMATION, False, pid)
    try:
        return _process_sid(process)
    finally:
        _winapi.CloseHandle(process)


def sid_of_account(name: str) -> str | None:
    """The SID of a user or group by its name (`alice`, `DOMAIN\\alice`); of a SID itself; None if there is none."""
    if name.upper().startswith("S-1-"):
        return name.upper()
    sid, domain = (c_void_p * 16)(), ctypes.create_unicode_buffer(256)
    try:
        _LookupAccountName(
            None, name, sid, byref(DWORD(ctypes.sizeof(sid))), domain, byref(DWORD(len(domain))), byref(c_int())
        )
    except OSError:
        return None
    return _sid_text(c_void_p(ctypes.addressof(sid)))


def sid_of_pipe_client(pipe: int) -> str:
    """The SID of the user at the other end of a server's instance, by becoming him for a moment.

    Identification level is enough for it, and works where the client's process may not be opened.  Once a byte
    of his has been read (ImpersonateNamedPipeClient).
    """
    _ImpersonateNamedPipeClient(pipe)
    try:
        token = HANDLE()
        _OpenThreadToken(_GetCurrentThread(), _TOKEN_QUERY, True, byref(token))
    finally:
        _RevertToSelf()
    return _token_sid(token)


def owner_of_pipe(pipe: int) -> str:
    """Return the SID that owns a pipe: only its creator could set it, and only an owner may add instances.

    Read from the open handle, so that no process id that might meanwhile be another's comes into it.
    """
    owner, descriptor = c_void_p(), c_void_p()
    _security_of(pipe, _OWNER_SECURITY_INFORMATION, owner, descriptor)
    try:
        return _sid_text(owner)
    finally:
        _LocalFree(descriptor)


def sddl_of_pipe(pipe: int) -> str:
    """Owner and access list of a pipe, as SDDL."""
    owner, descriptor = c_void_p(), c_void_p()
    _security_of(pipe, _OWNER_SECURITY_INFORMATION | _DACL_SECURITY_INFORMATION, owner, descriptor)
    try:
        return _sddl(descriptor)
    finally:
        _LocalFree(descriptor)


def _sddl(descriptor: c_void_p) -> str:
    text, what = LPWSTR(), _OWNER_SECURITY_INFORMATION | _DACL_SECURITY_INFORMATION
    _DescriptorToSddl(descriptor, _SDDL_REVISION_1, what, byref(text), None)
    return _taken(text)


def _security_of(pipe: int, what: int, owner: c_void_p, descriptor: c_void_p) -> None:
    error = _GetSecurityInfo(pipe, _SE_KERNEL_OBJECT, what, byref(owner), None, None, None, byref(descriptor))
    if error:  # this call returns its error
        raise ctypes.WinError(error)


def _process_sid(process: int) -> str:
    token = HANDLE()
    _OpenProcessToken(process, _TOKEN_QUERY, byref(token))
    return _token_sid(token)


def _token_sid(token: HANDLE) -> str:
    """The user of a token, which is closed."""
    assert token.value is not None
    buffer = (c_void_p * 16)()  # TOKEN_USER: a pointer and attributes, then a SID of at most 68 bytes
    try:
        _GetTokenInformation(token, _TOKEN_USER, buffer, ctypes.sizeof(buffer), byref(DWORD()))
    finally:
        _winapi.CloseHandle(token.value)
    return _sid_text(c_void_p(buffer[0]))


def _sid_text(sid: c_void_p) -> str:
    text = LPWSTR()
    _ConvertSidToStringSid(sid, byref(text))
    return _taken(text)


def _taken(text: LPWSTR) -> str:
    """Return the string that a call has allocated, and free it."""
    value = text.value or ""
    _LocalFree(ctypes.cast(text, c_void_p))
    return value
