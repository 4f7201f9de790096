"""Asking servers that are no peers: whoever answers OpenAI's API over HTTP."""
