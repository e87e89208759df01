"""NumPy references: every operator from its definition, forward and backward."""
