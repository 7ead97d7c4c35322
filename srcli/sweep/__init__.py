"""Many settings of a model's dials over the same photos: contact sheets, tables, plots and a page to look at them."""
