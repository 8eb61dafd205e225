"""`make feature`: writes a feature with its migration and its tests. The templates are in `scripts/feature`."""
