"""The control plane: plans which device runs which member, and keeps it so."""
