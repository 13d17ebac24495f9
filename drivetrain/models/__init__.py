"""The zoo: plain torch modules whose inputs and tables follow from the fitted features."""
