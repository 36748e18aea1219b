"""Records to a token store: map, agree on the codes, reduce, fit."""
