"""The version, in a module that imports nothing: the build, `--version` and the client all read it here."""

__version__ = "0.1.0"
