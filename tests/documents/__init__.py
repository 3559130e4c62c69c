"""Pages and messages of the repository, read as their readers read them."""
