"""Run directories become summary.csv and the parts of the page. Never touches a card; knows no pytest."""
