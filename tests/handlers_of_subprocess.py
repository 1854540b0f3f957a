"""A handler that starts a program: what that program inherits is the server's doing."""

import subprocess
import sys

SHOW = """
import json, os
found = {}
for entry in os.listdir("/proc/self/fd"):
    try:
        found[entry] = os.readlink("/proc/self/fd/" + entry)
    except OSError:
        pass  # the one that lists the folder
print(json.dumps(found))
"""


def open_files_of_child(request: bytes) -> bytes:
    """What the descriptors of a program lead to that was started without close_fds, as JSON."""
    return subprocess.run([sys.executable, "-c", SHOW], close_fds=False, stdout=subprocess.PIPE, check=True).stdout
