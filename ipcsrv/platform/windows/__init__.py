"""The platform contract on Windows."""
