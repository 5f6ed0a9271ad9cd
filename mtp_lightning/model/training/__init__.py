"""How a model is trained, beside what it is: what stays as it was, what is run again, how it is cut over processes."""
