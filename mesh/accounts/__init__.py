"""Who may use a mesh: API keys with their limits, users with their passwords and sessions, and the first of each."""
