rule benchmark_mmstar:
    output:
        R / "benchmarks/MMStar.tsv",
    log:
        R / "logs/benchmarks/MMStar.log",
    resources:
        **asks("small"),
    params:
        settings=digest({"corpus": corpus_settings(), "benchmark": preset.benchmarks.get("MMStar")}),
    shell:
        'python -m eval benchmark MMStar --preset "$PRESET" --out {output} > {log} 2>&1'
