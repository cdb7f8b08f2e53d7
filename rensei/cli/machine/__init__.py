"""The half of a host session that happens on the developer's own machine."""
