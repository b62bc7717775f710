"""What a run is worth: how good a measured diversity is, signs that it is gamed, and the page that shows both."""
