"""Models small enough for a test, in every form the package reads, and the definition of their arithmetic."""
