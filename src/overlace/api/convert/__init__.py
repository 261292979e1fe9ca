"""From our objects to the JSON documents docker's clients expect, one module per noun. Pure, no I/O."""
