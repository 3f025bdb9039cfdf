rule benchmark_seedbench:
    output:
        R / "benchmarks/SEEDBench.tsv",
    log:
        R / "logs/benchmarks/SEEDBench.log",
    resources:
        **asks("small"),
    params:
        settings=digest({"corpus": corpus_settings(), "benchmark": preset.benchmarks.get("SEEDBench")}),
    shell:
        'python -m eval benchmark SEEDBench --preset "$PRESET" --out {output} > {log} 2>&1'
