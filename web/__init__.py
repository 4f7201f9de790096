__distribution__ = "llm-router-mesh"
