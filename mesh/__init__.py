"""One peer: wiring, routing, the life of a request, settings, the command line."""

__distribution__ = "llm-router-mesh"
