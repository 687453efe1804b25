"""Many run folders → one static site, every ε computed again."""
