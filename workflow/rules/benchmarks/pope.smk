rule benchmark_pope:
    output:
        R / "benchmarks/POPE.tsv",
    log:
        R / "logs/benchmarks/POPE.log",
    resources:
        **asks("small"),
    params:
        settings=digest({"corpus": corpus_settings(), "benchmark": preset.benchmarks.get("POPE")}),
    shell:
        'python -m eval benchmark POPE --preset "$PRESET" --out {output} > {log} 2>&1'
