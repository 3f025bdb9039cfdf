rule benchmark_mmstar:
    output:
        R / "benchmarks/MMStar.tsv",
    log:
        R / "logs/benchmarks/MMStar.log",
    params:
        preset=PRESET,
        settings=digest({"corpus": preset.corpus, "benchmark": preset.benchmarks.get("MMStar")}),
    shell:
        "python -m eval benchmark MMStar --preset {params.preset} --out {output} > {log} 2>&1"
