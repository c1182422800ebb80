"""What a run looks like: critical path, utilisation, error by op, the HTML page and the pictures."""
