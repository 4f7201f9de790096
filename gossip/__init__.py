"""Who is here, who belongs, who coordinates. Carries opaque bytes and knows nothing of models."""

__distribution__ = "llm-router-mesh"
