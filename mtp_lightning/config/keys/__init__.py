"""Keys of a configuration: which there are, who has set them, and what is said of wrong ones."""
