"""Made volumes with labels: organs and vessels, or sheets of known thickness."""
