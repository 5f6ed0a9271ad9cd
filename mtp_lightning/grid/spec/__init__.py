"""From a grid file to its cells."""
