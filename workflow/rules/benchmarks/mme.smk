rule benchmark_mme:
    output:
        R / "benchmarks/MME.tsv",
    log:
        R / "logs/benchmarks/MME.log",
    resources:
        **asks("small"),
    params:
        settings=digest({"corpus": corpus_settings(), "benchmark": preset.benchmarks.get("MME")}),
    shell:
        'python -m eval benchmark MME --preset "$PRESET" --out {output} > {log} 2>&1'
