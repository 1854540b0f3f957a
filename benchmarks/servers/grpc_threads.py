"""grpcio with a pool of threads over a Unix socket, no generated code. `... PATH`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc


class Ponger(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: b"pong")


if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Ponger(),))
    server.add_insecure_port(f"unix:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()
