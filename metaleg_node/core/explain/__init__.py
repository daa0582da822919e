"""Why an address leaves as it does, or does not: the decisions of one node in words, beside what its kernel holds."""
