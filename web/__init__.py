"""The HTTP surface: routes, guards, streams, dialects. It is given its services and never imports the peer."""

__distribution__ = "llm-router-mesh"
