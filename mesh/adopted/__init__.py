"""Servers of OpenAI's API that are no peers, registered by an admin and routed to like peers."""
