"""The platform contract on Linux, macOS and the BSDs."""
