"""Tokenizers made here, and tokenizers compared."""
