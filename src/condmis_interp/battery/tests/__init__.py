"""The tests of the battery, one module a family."""
