"""The Python client and its command."""

import os

# gRPC's own log lines say in twenty raw ones what our error says in a sentence; read once, when grpc is imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
