"""What an evaluation found, to look at: one HTML page with players, and a table for a paper or a README."""
