"""The embedded default: a sample shop, tiny models and a local Gemini server."""
