"""Children's stories: a generator of them, and the names in them."""
