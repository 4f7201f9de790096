"""The engine: a worker process per loaded model, and the client that speaks with it."""
