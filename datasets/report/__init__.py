"""The data report as one HTML page with images."""
