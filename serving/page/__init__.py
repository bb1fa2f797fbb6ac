"""The page that a browser gets: what is served, each task to try, live load; and the API to read."""
