"""Gemini: client, quota, ledger, prices, prompts."""
