"""The LLM stage: client with rate, retry, budget and ledger. Imports neither torch nor the store."""
