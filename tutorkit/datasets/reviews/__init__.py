"""Short reviews of invented films: `reviews.jsonl`, described in `CARD.md`."""
