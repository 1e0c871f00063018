"""One file per engine kind: how a traced graph is lowered for it."""
