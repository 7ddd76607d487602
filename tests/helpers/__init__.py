"""What the tests share, and long runs by hand: python -m tests.helpers.NAME."""
