"""One request and its answer: limits, guards, refusals, and the calls of the service that all paths make."""
