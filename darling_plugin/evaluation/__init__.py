"""How good a measurement is: figures that compare what a partition model gives with what is known."""
