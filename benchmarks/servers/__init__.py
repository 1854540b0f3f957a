"""The peers: each module is a server that answers `ping` with `pong`, as its framework's own guide would have it."""
