"""A gateway node: holds connections and delivers what is pushed into it."""
