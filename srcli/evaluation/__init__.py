"""How good are the results: pairs of pictures, the metrics of the field, and tables of them."""
