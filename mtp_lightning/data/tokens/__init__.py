"""Tokens: tokenizers, shards of them on disk, windows of them in batches."""
