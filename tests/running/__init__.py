"""What is started and watched as a user would: commands, servers, the page in a browser."""
