"""One benchmark a file: rows -> prompts, answer -> score."""
