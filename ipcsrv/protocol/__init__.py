"""The wire: Git's simple-ipc as pure code. It does no input or output; the client and the worker share it."""
