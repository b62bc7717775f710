"""The small learned head: `default`, and those that darling-train-partition makes."""
