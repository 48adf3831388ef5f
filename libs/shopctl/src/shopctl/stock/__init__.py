"""Commands for warehouses: change stock, and exchange it with spreadsheets as CSV files."""
