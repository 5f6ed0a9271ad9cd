"""The comparison of a grid's cells: table, figures, verdict."""
