"""Run directories become summary.csv and the parts of the page. Never touches a GPU; knows no pytest."""
