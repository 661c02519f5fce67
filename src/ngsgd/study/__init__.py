"""The paper's claims, put to the test: a grid of runs, what they show, and a page that says what held."""
