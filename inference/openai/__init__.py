"""OpenAI's wire format: `request` makes our values from its JSON, `answer` makes its JSON from our values.

The one place that knows the field names of /v1/chat/completions, /v1/completions, /v1/embeddings and /v1/models
(https://platform.openai.com/docs/api-reference). It does no I/O and knows no HTTP.
"""
