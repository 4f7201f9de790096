"""The history of requests: what the ingress appended, its copies, and what people ask of it."""
