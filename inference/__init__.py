"""Making tokens: the vocabulary of requests, the engine in its worker process, the model files."""

__distribution__ = "llm-router-mesh"
