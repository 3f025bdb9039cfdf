"""Running on a SLURM cluster: what jobs ask for, how they are launched, and what Snakemake leaves undone.

`settings` reads the one file that differs between clusters, `requests` turns a preset's wishes into SLURM's terms,
`status` tells how jobs are, and `manners` is what a Snakemake on a login node does besides.
"""
