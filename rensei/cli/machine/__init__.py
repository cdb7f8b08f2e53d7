"""The part of a host session that runs on the developer's own machine."""
