"""Commands that use a development database: drafts of migrations, a prompt, example data."""
