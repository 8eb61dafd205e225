"""Field types and base schemas for all features."""
