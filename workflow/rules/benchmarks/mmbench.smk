rule benchmark_mmbench:
    output:
        R / "benchmarks/MMBench.tsv",
    log:
        R / "logs/benchmarks/MMBench.log",
    resources:
        **asks("small"),
    params:
        settings=digest({"corpus": corpus_settings(), "benchmark": preset.benchmarks.get("MMBench")}),
    shell:
        'python -m eval benchmark MMBench --preset "$PRESET" --out {output} > {log} 2>&1'
