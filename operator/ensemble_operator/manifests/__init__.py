"""What to create: from an ensemble to the planner's question, and from its answer to runtime configurations."""
