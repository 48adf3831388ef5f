"""The data of the views. It is read repeatedly while somebody looks."""
