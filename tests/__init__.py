"""The tests; each folder of the product has one here."""
