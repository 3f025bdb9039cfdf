rule benchmark_mmbench:
    output:
        R / "benchmarks/MMBench.tsv",
    log:
        R / "logs/benchmarks/MMBench.log",
    params:
        preset=PRESET,
        settings=digest({"corpus": preset.corpus, "benchmark": preset.benchmarks.get("MMBench")}),
    shell:
        "python -m eval benchmark MMBench --preset {params.preset} --out {output} > {log} 2>&1"
