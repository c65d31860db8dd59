"""vstorctl, the tool of the operator."""
