"""Keeps it so: watches, plans, applies, observes, and reports what it sees."""
