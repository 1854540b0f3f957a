"""A file-system monitor for Git on Linux, served by ipcsrv: see README.md."""
