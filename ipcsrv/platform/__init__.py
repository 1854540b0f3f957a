"""The contract with the operating system and its implementations, for clients and servers."""
