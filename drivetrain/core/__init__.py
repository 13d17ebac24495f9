"""What every stage speaks: values, seams and the declaration; imports nothing of the rest."""
