"""Commands beside the product: python -m tools.NAME."""
