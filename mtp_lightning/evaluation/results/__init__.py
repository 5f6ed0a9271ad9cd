"""What an evaluation found: at which temperature, shown, and recorded."""
