"""Play a terminal session and draw it: `python docs/figures/session.py > docs/figures/session.svg`.

The outputs are real; `ipcsrv` is the one that this Python has. Run it again when a message has changed.
"""

import html
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HANDLER = """\
import collections, json

def count(request: bytes) -> bytes:
    words = collections.Counter(request.decode().split())
    return json.dumps(words.most_common(2)).encode()
"""
COMMANDS = (
    "cat words.py",
    "ipcsrv start ./words.sock words:count",
    "ipcsrv call ./words.sock 'to be or not to be'",
    "kill -9 {worker}     # a worker crashes ...",
    "ipcsrv call ./words.sock 'still here'     # ... and is replaced",
    "ipcsrv reload ./words.sock     # new code, no failed request",
    "ipcsrv stop ./words.sock",
)
WIDTH, LINE, LEFT, TOP, COLUMNS = 860, 19, 20, 58, 98
BUTTONS = ((22, "#bf616a"), (42, "#ebcb8b"), (62, "#a3be8c"))
STYLE = (
    "text{font:13.5px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
    "white-space:pre;fill:#d8dee9}"
    ".p{fill:#8fbcbb}.c{fill:#eceff4;font-weight:600}.n{fill:#7b88a1}"
)


def main() -> None:
    """Play the session in a folder of its own and print the picture."""
    with tempfile.TemporaryDirectory(prefix="w-") as folder:
        print(drawing(list(played(folder))), end="")


def played(folder):
    """The lines of the session: each a kind (`command`, `output`) and a text."""
    Path(folder, "words.py").write_text(HANDLER)
    ipcsrv = Path(folder, ".bin", "ipcsrv")
    ipcsrv.parent.mkdir()
    ipcsrv.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m ipcsrv "$@"\n')
    ipcsrv.chmod(0o755)
    root = str(Path(__file__).parent.parent.parent)
    env = {**os.environ, "PATH": f"{ipcsrv.parent}:{os.environ['PATH']}", "PYTHONPATH": root,
           "XDG_STATE_HOME": f"{folder}/.local/state"}
    for written in COMMANDS:
        command = written
        if "{worker}" in command:
            facts = subprocess.run([ipcsrv, "status", "./words.sock", "--json"], cwd=folder, env=env,
                                   capture_output=True, text=True, check=True).stdout
            (pid,) = re.findall(r'"pid": (\d+)', facts.partition('"workers"')[2])[:1]
            command = written.format(worker=pid)
        done = subprocess.run(["sh", "-c", command], cwd=folder, env=env, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            sys.exit(f"$ {command}\n{done.stdout}")
        yield "command", command
        for line in done.stdout.replace(folder, "/home/me").splitlines():
            yield "output", line


def drawing(lines):
    """The session as SVG."""
    height = TOP + LINE * len(lines)
    texts = []
    for number, (kind, line) in enumerate(lines):
        shown = line if len(line) <= COLUMNS else line[: COLUMNS - 3] + "..."
        command, _, note = shown.partition("     # ") if kind == "command" else (shown, "", "")
        body = html.escape(command, quote=False)
        if kind == "command":
            body = f'<tspan class="p">$ </tspan><tspan class="c">{body}</tspan>'
        if note:
            body += f'<tspan class="n">   # {html.escape(note, quote=False)}</tspan>'
        texts.append(f'<text x="{LEFT}" y="{TOP + LINE * number}">{body}</text>')
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">',
        f"<style>{STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#2e3440"/>',
        *(f'<circle cx="{x}" cy="20" r="6" fill="{color}"/>' for x, color in BUTTONS),
        *texts,
        "</svg>\n",
    ])


if __name__ == "__main__":
    main()
