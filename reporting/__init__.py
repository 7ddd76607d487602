"""Results as numbers, tables, charts and pages."""
