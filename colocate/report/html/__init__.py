"""The HTML page of one or several stored runs."""
