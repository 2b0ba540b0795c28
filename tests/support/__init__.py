"""The real servers that tests run against, and how to freeze, kill and restart them."""
