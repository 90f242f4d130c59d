"""Templates and data of the model cards; `modeling_part.cards` renders them."""
