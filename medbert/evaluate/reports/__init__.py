"""What the numbers say, as sections, tables and pages."""
