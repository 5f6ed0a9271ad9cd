"""What an arm is worth on a ladder of sizes: compute, not loss."""
