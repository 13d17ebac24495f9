"""Where rows come from and land: files, tables, cleaning, joins and splits."""
