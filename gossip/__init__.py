"""Who is here, who belongs, who coordinates. Nothing yet: a version 0.1 peer is alone."""

__distribution__ = "llm-router-mesh"
