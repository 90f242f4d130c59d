"""Templates and data of the model cards; `modeling_part.publishing.cards` renders them."""
